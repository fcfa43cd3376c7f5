//! The texts of errors, and which of them are variants.

use super::*;

#[test]
fn text_of_an_error_has_its_reason() {
    let failure = |step, errno| Failure { step, subject: "/x".into(), errno };
    let denied = ExecError::of(failure(Step::Execute, libc::EACCES));
    assert!(denied.to_string().contains("\"/x\": Permission denied"), "{denied}");
    let missing = FileError::of(failure(Step::Open, libc::ENOENT));
    assert!(missing.to_string().contains("\"/x\": No such file"), "{missing}");
    let refused = ExecError::of(failure(Step::Limits, libc::EOPNOTSUPP));
    assert!(refused.to_string().contains("limit \"/x\": Operation not supported"), "{refused}");
    let broken = AgentError::from(SessionError::Restarted);
    assert!(broken.to_string().contains(&SessionError::Restarted.to_string()), "{broken}");
    assert_eq!(crate::error::whole(&denied), denied.to_string());
}

#[test]
fn what_may_succeed_later_is_a_variant() {
    let full = Failure { step: Step::Channel, subject: "".into(), errno: libc::EAGAIN };
    assert!(matches!(ExecError::of(full.clone()), ExecError::Agent { error: AgentError::Busy(_), .. }));
    assert!(matches!(FileError::of(full), FileError::Agent(AgentError::Busy(_))));
    assert!(matches!(OpenError::Clogged { waiting: 1 }.into(), AgentError::Busy(_)));
    assert!(matches!(OpenError::TooLong { length: 1 }.into(), AgentError::Open(_)));
}
