//! `coracle doctor`: one line for each thing that a guest needs, with the fix if it is missing.

use std::fmt::Display;
use std::fs;
use std::time::Duration;

use coracle::KvmError;
use coracle::command::emulated_host;
use coracle::exit_code;
use coracle::host::{self, KvmKind};
use coracle_image::guest_data::IS_AGENT_BUNDLED;
use coracle_image::guest_data::{self, GuestData};

use super::{answer, chain};
use crate::arguments::DoctorArgs;

/// Prints the report. Returns 0 if a Linux guest can run in any way, otherwise 115.
pub(crate) fn run(args: &DoctorArgs) -> u8 {
    let kvm = KvmKind::probe();
    if args.kind {
        return answer(kind_word(&kvm), 0);
    }
    let report = &mut String::new();
    let native = report_kvm(report, &kvm);
    let emulated = report_emulated_host(report, native);
    report_guest(report);
    report_agent(report);
    report_huge_pages(report);
    let summary = match (native, emulated) {
        (true, _) => "Linux guests run here at full speed.",
        (false, true) => {
            "Linux guests run here on an emulated host: correct, slow, and not safe from a hostile guest."
        }
        (false, false) => "No Linux guest can run here until a problem above is fixed.",
    };
    answer(&format!("{report}\n{summary}"), if native || emulated { 0 } else { exit_code::NO_KVM })
}

fn kind_word(kvm: &KvmKind) -> &'static str {
    match kvm {
        KvmKind::Hardware { .. } => "hardware",
        KvmKind::Software { .. } => "software",
        KvmKind::Unusable(KvmError::Denied { .. }) => "denied",
        KvmKind::Unusable(_) => "none",
    }
}

/// Reports the KVM of this host; `true` if stock Linux guests run on it.
fn report_kvm(report: &mut String, kvm: &KvmKind) -> bool {
    match kvm {
        KvmKind::Hardware { per_instruction } => {
            let speed = speed(*per_instruction);
            let hidden = if host::hides_xsave() { HIDDEN } else { "" };
            let text = format!("/dev/kvm runs guests in hardware ({speed} of kernel code){hidden}");
            line(report, State::Ok, "KVM", text);
            true
        }
        KvmKind::Software { per_instruction } => {
            let speed = speed(*per_instruction);
            let module = software_module().map_or(String::new(), |module| format!(", module {module}"));
            line(
                report,
                State::Warning,
                "KVM",
                format!(
                    "/dev/kvm is software KVM{module}: the CPU has no virtualization, and kernel code of guests is \
                     interpreted ({speed}). Bare payloads and kernels made for it run; a stock Linux does not. \
                     Fix: a machine with VT-x or AMD-V, or nested virtualization; until then Linux runs on the \
                     emulated host"
                ),
            );
            false
        }
        KvmKind::Unusable(error) => {
            line(report, State::Missing, "KVM", chain(error));
            false
        }
    }
}

fn report_emulated_host(report: &mut String, native: bool) -> bool {
    match emulated_host::check() {
        Ok(found) => {
            line(report, State::Ok, "emulated host", format!("{found}{HIDDEN}"));
            true
        }
        Err(error) => {
            let state = if native { State::Warning } else { State::Missing };
            line(report, state, "emulated host", chain(&error));
            false
        }
    }
}

fn report_guest(report: &mut String) {
    let files = [guest_data::default_kernel(false), guest_data::find(GuestData::GuestInitramfs)];
    match files.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(files) => {
            let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            line(report, State::Ok, "default guest", files.join(" and "));
        }
        Err(error) => line(report, State::Warning, "default guest", chain(&error)),
    }
}

fn report_agent(report: &mut String) {
    if IS_AGENT_BUNDLED {
        return line(report, State::Ok, "guest agent", "in this program");
    }
    match guest_data::find(GuestData::Agent) {
        Ok(file) => line(report, State::Ok, "guest agent", file.display()),
        Err(error) => line(report, State::Warning, "guest agent", chain(&error)),
    }
}

fn report_huge_pages(report: &mut String) {
    let (state, text) = match fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(setting) if setting.contains("[never]") => (
            State::Warning,
            "transparent huge pages are off, so guests touch new memory slowly. \
             Fix: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Ok(_) => (State::Ok, "guest memory uses transparent huge pages"),
        Err(_) => (State::Warning, "this kernel has none, so guests touch new memory slowly"),
    };
    line(report, state, "huge pages", text);
}

/// Returns the module that provides KVM on a host whose CPU has no virtualization.
fn software_module() -> Option<&'static str> {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let loaded = |name: &str| modules.lines().any(|line| line.split(' ').next() == Some(name));
    ["kvm_pvm"]
        .into_iter()
        .find(|name| loaded(name) || fs::exists(format!("/sys/module/{name}")).unwrap_or(false))
}

/// The features that guests on an emulated host lack.
const HIDDEN: &str = "; guests there have no XSAVE, AVX or protection keys, whose state QEMU loses";

#[derive(Clone, Copy)]
enum State {
    Ok,
    Warning,
    Missing,
}

fn line(report: &mut String, state: State, what: &str, text: impl Display) {
    let state = match state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Missing => "missing",
    };
    report.push_str(&format!("{state:8} {what:14} {text}\n"));
}

fn speed(per_instruction: Duration) -> String {
    let nanos = per_instruction.as_nanos().max(1) as f64;
    format!("about {:.1} million instructions a second", 1e3 / nanos)
}
