//! The service: `POST /run` runs a snippet, `GET /health` reports the state of the pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use coracle::agent::{ExecError, ExecStatus, Rlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::pool::{Lease, Pool};

/// A snippet of code to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snippet {
    /// The language in which it is written.
    pub language: Language,
    /// The code.
    pub code: String,
    /// The standard input of the snippet.
    #[serde(default)]
    pub stdin: String,
    /// The time limit of the snippet, if it is shorter than the service's own.
    pub timeout_ms: Option<u64>,
}

/// The interpreter of a snippet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// `sh`.
    Shell,
    /// `python3`, if the root file system has it.
    Python,
}

/// The result of a snippet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its exit code, if it exited.
    pub code: Option<u8>,
    /// The signal that killed it, if one did.
    pub signal: Option<u8>,
    /// True if it ran for too long and was killed; the output up to then is included.
    pub timed_out: bool,
    /// True if it wrote too much and was killed; the output up to the limit is included.
    pub cut_off: bool,
    /// Its standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
    /// The time from the start of the command to its end.
    pub run_ms: f64,
    /// The time from the request to the answer, including the wait for a machine.
    pub total_ms: f64,
}

impl Report {
    fn record_output(&mut self, stdout: &[u8], stderr: &[u8]) {
        self.stdout = String::from_utf8_lossy(stdout).into_owned();
        self.stderr = String::from_utf8_lossy(stderr).into_owned();
    }
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why the request was refused.
    pub error: String,
}

/// The state of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The number of machines that are ready.
    pub warm: usize,
    /// The number of snippets that are running.
    pub running: usize,
}

/// The limits of snippets.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time limit of a snippet.
    pub run: Duration,
    /// How many snippets run at once; others wait.
    pub at_once: usize,
    /// How long a request waits for a machine.
    pub queue: Duration,
}

struct Service {
    pool: Pool,
    limits: Limits,
    places: Semaphore,
}

/// Returns the routes of the service.
pub fn router(pool: Pool, limits: Limits) -> Router {
    let service = Service { pool, limits, places: Semaphore::new(limits.at_once) };
    Router::new()
        .route("/run", post(run))
        .route("/health", get(health))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(Arc::new(service))
}

type Answer = Result<Json<Report>, (StatusCode, Json<Refusal>)>;

async fn run(State(service): State<Arc<Service>>, Json(snippet): Json<Snippet>) -> Answer {
    let start = Instant::now();
    let place = async { (service.places.acquire().await.ok(), service.pool.take().await) };
    let Ok((Some(_place), Some(lease))) = tokio::time::timeout(service.limits.queue, place).await else {
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "no machine is free; try again later"));
    };
    let mut report = run_in(&lease, snippet, service.limits.run).await?;
    report.total_ms = milliseconds(start);
    Ok(Json(report))
}

/// Runs a snippet. Dropping the future, because the client has gone, ends the machine.
async fn run_in(
    lease: &Lease,
    snippet: Snippet,
    limit: Duration,
) -> Result<Report, (StatusCode, Json<Refusal>)> {
    let Some(vm) = lease.vm() else {
        return Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, "the machine has gone"));
    };
    let limit = snippet.timeout_ms.map_or(limit, |own| limit.min(Duration::from_millis(own)));
    let interpreter = match snippet.language {
        Language::Shell => "sh",
        Language::Python => "python3",
    };
    let exec = vm.exec([interpreter, "-c", &snippet.code]);
    let exec = exec.user(NOBODY).cwd("/tmp").stdin(snippet.stdin.as_str());
    let start = Instant::now();
    // A machine serves one snippet. These limits keep the guest able to report how the snippet ended.
    let exec = exec.max_processes(MAX_PROCESSES).rlimit(Rlimit::Core, 0).kill_tree(true);
    let end = exec.timeout(limit).output_limit(MAX_OUTPUT).output_async().await;
    let mut report = Report {
        code: None,
        signal: None,
        timed_out: false,
        cut_off: false,
        stdout: String::new(),
        stderr: String::new(),
        run_ms: milliseconds(start),
        total_ms: 0.0,
    };
    match end {
        Ok(output) => {
            match output.status {
                ExecStatus::Code(code) => report.code = Some(code),
                ExecStatus::Signal(signal) => report.signal = Some(signal),
            }
            report.record_output(&output.stdout, &output.stderr);
        }
        Err(ExecError::TimedOut { written, .. }) => {
            report.timed_out = true;
            report.record_output(&written.stdout, &written.stderr);
        }
        Err(ExecError::OutputLimit { written, .. }) => {
            report.cut_off = true;
            report.record_output(&written.stdout, &written.stderr);
        }
        // Whatever a snippet does to its machine, or a missing interpreter, is not the service's fault.
        Err(error) => return Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())),
    }
    Ok(report)
}

async fn health(State(service): State<Arc<Service>>) -> Json<Health> {
    let running = service.limits.at_once - service.places.available_permits();
    Json(Health { warm: service.pool.warm(), running })
}

fn refusal(status: StatusCode, error: &str) -> (StatusCode, Json<Refusal>) {
    (status, Json(Refusal { error: error.into() }))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A snippet does not need root's rights, although they would end at the machine's boundary.
const NOBODY: &str = "65534:65534";
/// The number of processes and threads of a snippet, which contains a fork bomb.
const MAX_PROCESSES: u32 = 64;
/// The maximum size of a request: a snippet and its input.
const LARGEST_REQUEST: usize = 1 << 20;
/// The maximum size of both outputs together, so that many requests at once do not exhaust the service's
/// memory.
const MAX_OUTPUT: usize = 1 << 20;
