//! Tests of paths, streams and directories of a guest, and of the limits of its commands, with the agent's
//! real program on this machine.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::agent::{agent, runtime};
use common::{eventually, fresh_path as path};
use coracle::agent::{AgentError, CopyLimits, ExecError, ExecStatus, FileError, FileKind, Rlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn kind(error: &FileError) -> ErrorKind {
    error.guest_error().unwrap_or_else(|| panic!("{error}"))
}

#[test]
fn paths_are_made_looked_at_renamed_and_removed() {
    let agent = agent!();
    let client = &agent.client;
    let folder = path("paths");
    client.mkdir(&folder).unwrap();
    assert_eq!(kind(&client.mkdir(&folder).unwrap_err()), ErrorKind::AlreadyExists);
    client.mkdir_all(folder.join("a/b/c")).unwrap();
    client.mkdir_all(folder.join("a/b/c")).unwrap();
    assert_eq!(kind(&client.mkdir(folder.join("x/y")).unwrap_err()), ErrorKind::NotFound);
    let stat = client.stat(folder.join("a/b")).unwrap();
    assert_eq!((stat.kind, stat.mode, stat.uid), (FileKind::Folder, 0o755, 0));
    client.write_file(folder.join("file"), "12345").unwrap();
    client.symlink("file", folder.join("link")).unwrap();
    assert_eq!(client.read_link(folder.join("link")).unwrap(), Path::new("file"));
    assert_eq!(client.stat(folder.join("link")).unwrap().size, 5);
    assert_eq!(client.stat_link(folder.join("link")).unwrap().kind, FileKind::Link);
    assert_eq!(client.stat("/").unwrap().kind, FileKind::Folder);
    assert_eq!(kind(&client.read_link(folder.join("file")).unwrap_err()), ErrorKind::InvalidInput);
    client.rename(folder.join("file"), folder.join("a/file")).unwrap();
    assert_eq!(kind(&client.stat(folder.join("file")).unwrap_err()), ErrorKind::NotFound);
    assert_eq!(kind(&client.remove(folder.join("a")).unwrap_err()), ErrorKind::DirectoryNotEmpty);
    // Removes a link to a directory, and not the directory.
    client.symlink("a", folder.join("to-a")).unwrap();
    client.remove_all(folder.join("to-a")).unwrap();
    assert!(folder.join("a/file").exists());
    client.remove(folder.join("a/file")).unwrap();
    let wrong = client.rename("/no/such", folder.join("y")).unwrap_err().to_string();
    assert!(wrong.contains("/no/such") && wrong.contains("put into place"), "{wrong}");
    client.remove_all(&folder).unwrap();
    assert!(!folder.exists());
    assert_eq!(kind(&client.remove_all(&folder).unwrap_err()), ErrorKind::NotFound);
}

#[test]
fn paths_are_changed_by_tasks() {
    let agent = agent!();
    let (client, folder) = (&agent.client, path("tasks"));
    runtime().block_on(async {
        client.mkdir_async(&folder).await.unwrap();
        client.mkdir_all_async(folder.join("a/b")).await.unwrap();
        client.write_file_async(folder.join("f"), "123").await.unwrap();
        assert_eq!(client.stat_async(folder.join("f")).await.unwrap().size, 3);
        client.rename_async(folder.join("f"), folder.join("g")).await.unwrap();
        client.symlink_async("g", folder.join("link")).await.unwrap();
        assert_eq!(client.read_link_async(folder.join("link")).await.unwrap(), Path::new("g"));
        assert_eq!(client.stat_async(folder.join("link")).await.unwrap().size, 3);
        assert_eq!(client.stat_link_async(folder.join("link")).await.unwrap().kind, FileKind::Link);
        let wrong = client.read_link_async(folder.join("g")).await.unwrap_err();
        assert_eq!(kind(&wrong), ErrorKind::InvalidInput);
        let cut = client.list_dir_limited_async(&folder, 40).await.unwrap_err();
        assert!(matches!(cut, FileError::TooLarge { limit: 40, .. }), "{cut}");
        client.remove_async(folder.join("link")).await.unwrap();
        let mut names: Vec<_> =
            client.list_dir_async(&folder).await.unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        assert_eq!(names, ["a", "g"]);
        client.remove_async(folder.join("g")).await.unwrap();
        assert_eq!(kind(&client.remove_async(&folder).await.unwrap_err()), ErrorKind::DirectoryNotEmpty);
        client.remove_all_async(&folder).await.unwrap();
        assert_eq!(kind(&client.list_dir_async(&folder).await.unwrap_err()), ErrorKind::NotFound);
    });
}

#[test]
fn files_are_streams_both_ways_for_threads_and_tasks() {
    let agent = agent!();
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number ^ (number >> 9)) as u8).collect();
    let (file, copy) = (path("stream"), path("stream-copy"));
    let mut writer = agent.client.create_file(&file, Some(0o640)).unwrap();
    writer.write_all(&content).unwrap();
    assert!(!file.exists(), "it comes to its place when it is whole");
    writer.finish().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
    let mut reader = agent.client.open_file(&file).unwrap();
    assert_eq!(reader.info().size, 3_000_000);
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    assert!(back == content);
    runtime().block_on(async {
        let mut reader = agent.client.open_file_async(&file).await.unwrap().into_async();
        let mut writer = agent.client.create_file_async(&copy, None).await.unwrap().into_async();
        assert_eq!(tokio::io::copy(&mut reader, &mut writer).await.unwrap(), 3_000_000);
        writer.shutdown().await.unwrap();
        let mut first = [0; 4];
        let mut again = agent.client.open_file_async(&copy).await.unwrap().into_async();
        again.read_exact(&mut first).await.unwrap();
        assert_eq!(first, content[..4]);
        let refused = agent.client.open_file_async("/no/such").await.err().unwrap();
        assert_eq!(kind(&refused), ErrorKind::NotFound);
    });
    assert!(fs::read(&copy).unwrap() == content);
    // An unfinished file changes nothing, and a file that cannot be created is reported by then.
    let mut dropped = agent.client.create_file(&file, None).unwrap();
    dropped.write_all(b"new").unwrap();
    drop(dropped);
    let refused = agent.client.create_file("/no/such/file", None).unwrap().finish().unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::NotFound);
    assert!(agent.client.read_file(&file).unwrap() == content);
    assert_eq!(kind(&agent.client.open_file("/usr").err().unwrap()), ErrorKind::IsADirectory);
}

#[test]
fn files_go_to_and_come_from_streams_of_a_task() {
    let agent = agent!();
    let (client, file) = (&agent.client, path("task-stream"));
    let content: Vec<u8> = (0..1_000_000_u32).map(|number| (number ^ (number >> 7)) as u8).collect();
    runtime().block_on(async {
        client.write_file_from_async(&file, Some(0o600), &mut content.as_slice()).await.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        let mut back = std::io::Cursor::new(Vec::new());
        let info = client.read_file_to_async(&file, 1_000_000, &mut back).await.unwrap();
        assert_eq!((info.size, back.into_inner() == content), (1_000_000, true));
        let mut some = std::io::Cursor::new(Vec::new());
        let cut = client.read_file_to_async(&file, 999_999, &mut some).await.unwrap_err();
        assert!(matches!(cut, FileError::TooLarge { limit: 999_999, .. }), "{cut}");
        assert!(some.into_inner().len() <= 999_999);
        let cut = client.read_file_limited_async(&file, 999_999).await.unwrap_err();
        assert!(matches!(cut, FileError::TooLarge { limit: 999_999, .. }), "{cut}");
        // The writer is full after 10 bytes; the reader fails at once, and the file stays.
        let mut small = std::io::Cursor::new(vec![0; 10].into_boxed_slice());
        let full = client.read_file_to_async(&file, u64::MAX, &mut small).await.unwrap_err();
        assert!(matches!(full, FileError::Local { .. }), "{full}");
        let mut broken = failing_reader();
        let failed = client.write_file_from_async(&file, None, &mut broken).await.unwrap_err();
        assert!(matches!(failed, FileError::Local { .. }), "{failed}");
        let refused = client.write_file_from_async("/no/such/file", None, &mut &b"x"[..]).await.unwrap_err();
        assert_eq!(kind(&refused), ErrorKind::NotFound);
    });
    assert!(fs::read(&file).unwrap() == content);
}

/// A reader that returns some bytes and then fails.
fn failing_reader() -> impl tokio::io::AsyncRead + Unpin {
    struct Fails;
    impl tokio::io::AsyncRead for Fails {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(ErrorKind::StorageFull.into()))
        }
    }
    AsyncReadExt::chain(&b"new"[..], Fails)
}

/// Creates a directory with files, directories, links and a pipe.
fn tree(name: &str) -> PathBuf {
    let root = path(name);
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("file"), "content").unwrap();
    fs::write(root.join("sub/program"), vec![7; 200_000]).unwrap();
    fs::set_permissions(root.join("sub/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("sub/deep"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("../../file", root.join("sub/deep/up")).unwrap();
    symlink("/etc/passwd", root.join("out")).unwrap();
    symlink("sub/../../..", root.join("sly")).unwrap();
    assert!(Command::new("mkfifo").arg(root.join("pipe")).status().unwrap().success());
    root
}

#[test]
fn directories_are_copied_in_and_out() {
    let agent = agent!();
    let (root, inside, back) = (tree("tree"), path("inside"), path("back"));
    let copied = agent.client.copy_in(&root, &inside).unwrap();
    assert_eq!((copied.files, copied.directories, copied.links, copied.left_out), (2, 3, 3, 1));
    assert_eq!(copied.bytes, 200_007);
    assert_eq!(fs::read_link(inside.join("out")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(inside.join("sub/program")).unwrap().permissions().mode() & 0o7777, 0o4755);
    // Neither links that lead out nor other users' permissions leave a guest.
    let copied = agent.client.copy_out(&inside, &back, CopyLimits::default()).unwrap();
    assert_eq!((copied.files, copied.directories, copied.links, copied.left_out), (2, 3, 1, 2));
    assert_eq!(fs::read(back.join("sub/deep/up")).unwrap(), b"content");
    assert_eq!(fs::metadata(back.join("sub/program")).unwrap().permissions().mode() & 0o7000, 0);
    assert!(
        fs::symlink_metadata(back.join("out")).is_err() && fs::symlink_metadata(back.join("sly")).is_err()
    );
    let again = agent.client.copy_out(&inside, &back, CopyLimits::default()).unwrap_err();
    let FileError::Copy { error, .. } = &again else { panic!("{again}") };
    assert!(matches!(**error, FileError::Local { .. }), "what is there stays: {again}");
    let [whole, part] = [&inside, &back].map(|path| format!("{path:?}"));
    assert!(again.to_string().contains(&format!("{whole} of the guest to {part} of the host: ")), "{again}");
    let tasks = path("by-task");
    let copied = runtime().block_on(async {
        agent.client.copy_in_async(&root, path("inside-2")).await.unwrap();
        agent.client.copy_out_async(&inside, &tasks, CopyLimits::default()).await.unwrap()
    });
    assert_eq!((copied.files, fs::read(tasks.join("file")).unwrap()), (2, b"content".to_vec()));
}

#[test]
fn failure_of_a_copy_names_both_paths_and_their_sides() {
    let agent = agent!();
    let (root, target) = (tree("named"), path("named-in"));
    fs::create_dir_all(target.join("file")).unwrap();
    let error = agent.client.copy_in(&root, &target).unwrap_err();
    let (from, to) = (root.join("file"), target.join("file"));
    let start = format!("cannot copy {from:?} of the host to {to:?} of the guest: the guest cannot ");
    assert!(error.to_string().starts_with(&start), "{error}");
    assert_eq!(error.guest_error(), Some(ErrorKind::IsADirectory));
    let error = agent.client.copy_in(root.join("missing"), &target).unwrap_err();
    let start = format!("cannot copy {:?} of the host to {target:?} of the guest: ", root.join("missing"));
    assert!(error.to_string().starts_with(&start) && error.to_string().contains("No such file"), "{error}");
    let gone = path("gone");
    let error = agent.client.copy_out("/no/such", &gone, CopyLimits::default()).unwrap_err();
    let start = format!("cannot copy \"/no/such\" of the guest to {gone:?} of the host: the guest cannot ");
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[test]
fn copies_out_are_bounded() {
    let agent = agent!();
    let root = tree("bounded");
    let copy = |name: &str, limits| match agent.client.copy_out(&root, path(name), limits).unwrap_err() {
        FileError::Copy { error, .. } => *error,
        other => panic!("{other}"),
    };
    let bytes = copy("bytes", CopyLimits { bytes: 100_000, ..CopyLimits::default() });
    assert!(matches!(bytes, FileError::TooLarge { limit: 100_000, .. }), "{bytes}");
    let entries = copy("entries", CopyLimits { entries: 3, ..CopyLimits::default() });
    assert!(matches!(entries, FileError::TooMany { limit: 3, .. }), "{entries}");
}

#[test]
fn tree_is_killed_with_its_command_if_that_is_wanted() {
    let agent = agent!();
    let is_alive = |pid: &str| Path::new(&format!("/proc/{pid}")).exists();
    let pid = |output: coracle::agent::Output| String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let script = "sleep 600 >/dev/null 2>&1 & echo $!";
    let left = pid(agent.sh(script).output().unwrap());
    assert!(is_alive(&left));
    agent.sh(&format!("kill {left}")).status().unwrap();
    let killed = pid(agent.sh(script).kill_tree(true).output().unwrap());
    eventually("what it has started is dead", || !is_alive(&killed));
    if agent.client.wait_ready(common::LIMIT).unwrap().kills_groups {
        let killed = pid(agent.sh(&format!("setsid {script}")).kill_tree(true).output().unwrap());
        eventually("what has left its group is dead", || !is_alive(&killed));
    }
}

#[test]
fn resources_of_processes_are_limited() {
    let agent = agent!();
    let file = path("limited");
    let exec = agent.sh(&format!("ulimit -n; head -c 100000 /dev/zero > {}", file.display()));
    let output = exec.rlimit(Rlimit::FileSize, 1024).rlimit(Rlimit::OpenFiles, 77).output().unwrap();
    assert!(!output.status.success() && output.stdout == b"77\n", "{output:?}");
    assert_eq!(fs::metadata(file).unwrap().len(), 1024);
    let status = agent.sh("while :; do :; done").rlimit(Rlimit::CpuSeconds, 1).status().unwrap();
    assert!(matches!(status, ExecStatus::Signal(9 | 24)), "{status}");
}

/// The limits need control groups on the test's machine; guests have them (`tests/linux/agent.rs`).
#[test]
fn limits_of_the_group_hold_or_are_refused() {
    let agent = agent!();
    let exec =
        || agent.sh("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait").timeout(Duration::from_secs(20));
    match exec().max_processes(4).kill_tree(true).output() {
        Ok(output) => assert!(!output.stderr.is_empty(), "more than 4 were started"),
        Err(ExecError::Agent { error: AgentError::Refused { step, .. }, .. }) => {
            assert_eq!(format!("{step:?}"), "Limits");
        }
        Err(error) => panic!("{error}"),
    }
}
