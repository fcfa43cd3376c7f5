//! The caller's paths that must be made visible on the machine, where its own `/tmp`, `/run` and `/dev/shm`
//! hide them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use coracle_agent::protocol::emulated_host::{PRIVATE_DIRECTORIES, Share};

use super::error::{EmulatedHostError, ShareProblem};

/// Returns the shares of a command: those that were asked for, its working directory, and its program.
///
/// # Errors
/// [`EmulatedHostError::Share`] for a path that was asked for and cannot be shared.
pub(super) fn of_command(
    asked: &[PathBuf],
    cwd: &Path,
    program: &OsStr,
    search_path: Option<&OsStr>,
) -> Result<Vec<Share>, EmulatedHostError> {
    let mut shares = Vec::new();
    for path in asked {
        let absolute = cwd.join(path);
        let found = check_crosses(&absolute)
            .and_then(|()| of_path(&absolute))
            .map_err(|problem| EmulatedHostError::Share { path: path.clone(), problem })?;
        shares.extend(found);
    }
    // These two are optional. If they cannot be shared, the machine reports what is missing.
    let program = located(program, cwd, search_path);
    for path in [Some(cwd.to_owned()), program].into_iter().flatten() {
        shares.extend(of_path(&path).unwrap_or_default());
    }
    shares.dedup();
    Ok(shares)
}

/// Refuses a path that means something else on the machine.
fn check_crosses(path: &Path) -> Result<(), ShareProblem> {
    let is_kernels = KERNEL_DIRECTORIES.iter().any(|directory| path.starts_with(directory));
    let is_same_everywhere = SAME_EVERYWHERE.iter().any(|device| path == Path::new(device));
    if is_kernels && !is_private(path) && !is_same_everywhere {
        return Err(ShareProblem::OfThisKernel);
    }
    Ok(())
}

/// Returns the shares that make one absolute path of the caller work on the machine: none if it works anyway,
/// two if it is reached through a symbolic link.
fn of_path(path: &Path) -> Result<Vec<Share>, ShareProblem> {
    let source = fs::canonicalize(path).map_err(ShareProblem::Unreachable)?;
    let kind = fs::metadata(&source).map_err(ShareProblem::Unreachable)?.file_type();
    let mut targets = vec![source.clone()];
    if path != source && !path.components().any(|part| part == Component::ParentDir) {
        targets.push(path.components().collect());
    }
    targets.retain(|target| is_private(target));
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    if PRIVATE_DIRECTORIES.iter().any(|directory| targets.iter().any(|target| target == Path::new(directory)))
    {
        return Err(ShareProblem::WholePrivateDirectory);
    }
    if !kind.is_file() && !kind.is_dir() {
        return Err(ShareProblem::SpecialFile);
    }
    Ok(targets.into_iter().map(|target| Share { source: source.clone(), target }).collect())
}

fn is_private(path: &Path) -> bool {
    PRIVATE_DIRECTORIES.iter().any(|directory| path.starts_with(directory))
}

/// Finds a program by the rules of `execvp(3)`.
fn located(program: &OsStr, cwd: &Path, search_path: Option<&OsStr>) -> Option<PathBuf> {
    if Path::new(program).components().count() > 1 || program.as_encoded_bytes().contains(&b'/') {
        return Some(cwd.join(program));
    }
    let folders: OsString = search_path?.to_owned();
    std::env::split_paths(&folders)
        .map(|folder| cwd.join(folder).join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Directories in which the kernel shows its own machine. They include inherited descriptors (`/dev/fd`).
const KERNEL_DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Devices that are the same on every machine.
const SAME_EVERYWHERE: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/full"];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A folder under `/tmp` that is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = PathBuf::from(format!("/tmp/coracle-shares-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn same(path: &Path) -> Share {
        Share { source: path.to_owned(), target: path.to_owned() }
    }

    #[test]
    fn a_path_outside_the_private_directories_needs_no_share() {
        assert_eq!(
            of_command(&["/etc".into()], Path::new("/usr"), OsStr::new("/bin/true"), None).unwrap(),
            []
        );
    }

    #[test]
    fn a_working_directory_under_tmp_is_shared_and_tmp_itself_is_not() {
        let scratch = Scratch::new("cwd");
        let program = OsStr::new("/bin/true");
        assert_eq!(of_command(&[], &scratch.0, program, None).unwrap(), [same(&scratch.0)]);
        assert_eq!(of_command(&[], Path::new("/tmp"), program, None).unwrap(), []);
    }

    #[test]
    fn a_program_under_tmp_is_shared_by_path_and_by_search() {
        let scratch = Scratch::new("program");
        let program = scratch.0.join("tool");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let cwd = Path::new("/");
        assert_eq!(of_command(&[], cwd, program.as_os_str(), None).unwrap(), [same(&program)]);
        let search = Some(scratch.0.as_os_str());
        assert_eq!(of_command(&[], cwd, OsStr::new("tool"), search).unwrap(), [same(&program)]);
        assert_eq!(of_command(&[], cwd, OsStr::new("tool"), None).unwrap(), []);
    }

    #[test]
    fn a_symbolic_link_is_shown_under_both_names() {
        let scratch = Scratch::new("link");
        let (real, link) = (scratch.0.join("real"), scratch.0.join("link"));
        fs::write(&real, "").unwrap();
        symlink(&real, &link).unwrap();
        let shares =
            of_command(std::slice::from_ref(&link), Path::new("/"), OsStr::new("true"), None).unwrap();
        assert_eq!(shares, [same(&real), Share { source: real, target: link }]);
    }

    #[test]
    fn a_link_from_tmp_to_elsewhere_is_shown_at_its_name() {
        let scratch = Scratch::new("out");
        let link = scratch.0.join("link");
        symlink("/usr/bin", &link).unwrap();
        let shares =
            of_command(std::slice::from_ref(&link), Path::new("/"), OsStr::new("true"), None).unwrap();
        assert_eq!(shares, [Share { source: fs::canonicalize("/usr/bin").unwrap(), target: link }]);
    }

    #[test]
    fn what_cannot_be_shared_is_refused_by_name() {
        let scratch = Scratch::new("refused");
        let socket = scratch.0.join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let refused = |path: &Path| of_path(path).unwrap_err();
        assert!(matches!(refused(&socket), ShareProblem::SpecialFile));
        assert!(matches!(refused(Path::new("/tmp")), ShareProblem::WholePrivateDirectory));
        assert!(matches!(refused(&scratch.0.join("absent")), ShareProblem::Unreachable(_)));
        for path in ["/dev/loop0", "/dev/fd/0", "/proc/self/fd/3", "/dev/stdin", "/sys/class"] {
            assert!(matches!(check_crosses(Path::new(path)), Err(ShareProblem::OfThisKernel)), "{path}");
        }
        assert!(of_command(&["/dev/null".into()], Path::new("/"), OsStr::new("true"), None).is_ok());
        let error =
            of_command(std::slice::from_ref(&socket), Path::new("/"), OsStr::new("true"), None).unwrap_err();
        assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
    }
}
