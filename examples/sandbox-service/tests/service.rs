//! Tests the command itself, over HTTP. `cargo xtask test` runs this where KVM can run Linux: on hardware, or
//! else on the emulated host.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, StatusCode};
use coracle::host::KvmKind;
use sandbox_service::load::{self, ServiceClient};
use sandbox_service::service::{Health, Language, Refusal, Report, Snippet};

/// The command, serving.
struct Service {
    process: Child,
    address: SocketAddr,
}

impl Service {
    /// Starts the service. Returns `None`, after printing why, if no Linux guest can run.
    fn start(options: &[&str]) -> Option<Service> {
        if !matches!(KvmKind::probe(), KvmKind::Hardware { .. }) {
            // The test harness would capture the output of `eprintln!`.
            let _ = writeln!(std::io::stderr(), "skipped: no KVM here that runs Linux guests");
            return None;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox-service"));
        command.args(["--listen", "127.0.0.1:0", "--memory", "96", "--queue", "100", "--limit", "60"]);
        let mut process = command.args(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("serving on http://").unwrap().parse().unwrap();
        Some(Service { process, address })
    }

    fn client(&self) -> ServiceClient {
        ServiceClient::new(self.address)
    }

    /// Sends the signal by which a supervisor ends the service.
    fn end(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the service runs on");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

macro_rules! service {
    ($($option:expr),*) => {
        match Service::start(&[$($option),*]) {
            Some(service) => service,
            None => return,
        }
    };
}

fn shell(code: &str) -> Snippet {
    Snippet { language: Language::Shell, code: code.into(), stdin: String::new(), timeout_ms: None }
}

async fn report(client: &ServiceClient, snippet: &Snippet) -> Report {
    let (status, report) = client.run(snippet).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    report
}

#[tokio::test]
async fn snippets_have_machines_limits_and_reports_of_their_own() {
    let service = service!();
    let client = service.client();

    let snippet = Snippet { stdin: "words".into(), ..shell("cat; id -u >&2; exit 3") };
    let ended = report(&client, &snippet).await;
    assert_eq!((ended.code, ended.signal, ended.timed_out), (Some(3), None, false));
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("words", "65534\n"));

    let left = report(&client, &shell("echo left > /tmp/mark")).await;
    assert_eq!(left.code, Some(0));
    let found = report(&client, &shell("cat /tmp/mark")).await;
    assert_eq!(found.code, Some(1), "the machine of another snippet: {found:?}");

    let long = Snippet { timeout_ms: Some(1000), ..shell("echo so far; sleep 1000") };
    let killed = report(&client, &long).await;
    assert_eq!((killed.timed_out, killed.stdout.as_str()), (true, "so far\n"));
    assert_eq!(report(&client, &shell("kill -9 $$")).await.signal, Some(9));

    let flood = report(&client, &shell("yes")).await;
    assert_eq!((flood.cut_off, flood.stdout.len()), (true, 1 << 20));

    // A process that stays behind ends with its snippet.
    let behind = report(&client, &shell("sleep 1000 & echo done")).await;
    assert_eq!((behind.code, behind.stdout.as_str()), (Some(0), "done\n"));
    assert!(behind.first_byte_ms.unwrap() <= behind.total_ms);
    // A snippet that does not read its input is not waited for.
    let deaf = Snippet { stdin: "x".repeat(500_000), ..shell("echo 'it'\\''s') ") };
    assert_eq!(report(&client, &deaf).await.code, Some(2), "a broken snippet ends with the shell's code");
    let deaf = Snippet { stdin: "x".repeat(500_000), ..shell("echo 'it'\\''s'") };
    assert_eq!(report(&client, &deaf).await.stdout, "it's\n");

    let python = Snippet { language: Language::Python, ..shell("print(1)") };
    let (status, refusal): (_, Refusal) = client.run(&python).await.unwrap();
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refusal.error.contains("python3"), "the default guest has none: {refusal:?}");
    refuses_bad_code(&client).await;
    service.end();
}

async fn refuses_bad_code(client: &ServiceClient) {
    let refused = async |code: String| client.run::<Refusal>(&shell(&code)).await.unwrap();
    let (status, refusal) = refused("#".repeat((128 << 10) + 1)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refusal.error.contains("the code has 131073 bytes, and 131072 are allowed"), "{refusal:?}");
    let (status, refusal) = refused("echo \0A=b".into()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refusal.error.contains("zero byte"), "{refusal:?}");
    let longest = format!("echo start\n{}", "#".repeat((128 << 10) - 11));
    assert_eq!(report(client, &shell(&longest)).await.stdout, "start\n");
}

/// Forks of one template share its memory, but no random numbers.
#[tokio::test]
async fn snippets_draw_random_numbers_of_their_own() {
    let service = service!();
    let client = service.client();
    let draw = shell("head -c 16 /dev/urandom | hexdump; echo $RANDOM $RANDOM; echo $CORACLE_FORK_ID");
    let mut drawn = std::collections::HashSet::new();
    for _ in 0..4 {
        let report = report(&client, &draw).await;
        for line in report.stdout.lines().filter(|line| !line.starts_with("0000010")) {
            assert!(drawn.insert(line.to_owned()), "{line} again: {drawn:?}");
        }
    }
    assert_eq!(drawn.len(), 12, "{drawn:?}");
    service.end();
}

#[tokio::test]
async fn many_clients_get_each_its_own_answer_and_their_machines_end() {
    let service = service!("--at-once", "3");
    let client = service.client();
    let loaded = load::run(service.address, Language::Shell, 6, 3).await.unwrap();
    assert_eq!(loaded.count(), 6);
    println!("{loaded}, first byte {}", loaded.first_byte());
    // A client that goes does not leave its snippet behind.
    let forever = Snippet { timeout_ms: None, ..shell("sleep 1000") };
    let gone = tokio::time::timeout(Duration::from_secs(2), client.run::<Report>(&forever)).await;
    assert!(gone.is_err());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (_, health): (_, Health) = client.ask(Method::GET, "/health", Body::empty()).await.unwrap();
        if health == (Health { languages: vec![Language::Shell], running: 0 }) {
            break;
        }
        assert!(Instant::now() < deadline, "{health:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.end();
}

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox-service"));
    let output = command.args(["--root", "/no/such", "--load", "1"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/no/such") && !said.contains("stack backtrace"), "{said}");
    for value in ["0", "18446744073709551615"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox-service"));
        let output = command.args(["--at-once", value]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{value}: {output:?}");
    }
}
