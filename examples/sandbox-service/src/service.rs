//! The service: `POST /run` runs a snippet, `GET /health` reports the state of the service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use coracle::agent::ExecStatus;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::pool::{NotStarted, Pool, Running};
use crate::run::Run;
pub use crate::worker::Language;

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
    /// The time from the request to the first byte of its output; none if it wrote nothing.
    pub first_byte_ms: Option<f64>,
    /// The time from the start of the snippet in its machine to its end.
    pub run_ms: f64,
    /// The time from the request to the answer, including the wait for a machine.
    pub total_ms: f64,
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why the request was refused.
    pub error: String,
}

/// The state of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The languages of snippets that it runs.
    pub languages: Vec<Language>,
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
    let Snippet { language, code, stdin, timeout_ms } = snippet;
    check(&code)?;
    let limit =
        timeout_ms.map_or(service.limits.run, |own| service.limits.run.min(Duration::from_millis(own)));
    let begin = async {
        let place = service.places.acquire().await.ok();
        (place, service.pool.start(language, code, limit).await)
    };
    let Ok((_place, running)) = tokio::time::timeout(service.limits.queue, begin).await else {
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "no machine is free; try again later"));
    };
    let Running { process, lease: _lease } = running.map_err(|error| {
        let status = match error {
            NotStarted::NoMachine(_) => StatusCode::SERVICE_UNAVAILABLE,
            NotStarted::NoInterpreter(_) | NotStarted::Command(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        refusal(status, &error.to_string())
    })?;
    let began = Instant::now();
    // Dropping the future, because the client has gone, ends the machine.
    let run = Run::of(process, &stdin, limit, MAX_OUTPUT).await;
    // Whatever a snippet does to its machine is not the service's fault.
    let run = run.map_err(|error| refusal(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()))?;
    Ok(Json(Report {
        code: run.status.and_then(ExecStatus::code),
        signal: run.status.and_then(ExecStatus::signal),
        timed_out: run.status.is_none() && !run.cut_off,
        cut_off: run.cut_off,
        stdout: String::from_utf8_lossy(&run.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&run.stderr).into_owned(),
        first_byte_ms: run.first_byte.map(|at| milliseconds(at.duration_since(start))),
        run_ms: milliseconds(began.elapsed()),
        total_ms: milliseconds(start.elapsed()),
    }))
}

/// Refuses code that does not fit into a variable of a guest.
fn check(code: &str) -> Result<(), (StatusCode, Json<Refusal>)> {
    if code.len() > MAX_CODE {
        let error =
            format!("the code has {} bytes, and {MAX_CODE} are allowed; pass data on stdin", code.len());
        return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, &error));
    }
    if code.contains('\0') {
        return Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, "the code has a zero byte; leave it out"));
    }
    Ok(())
}

async fn health(State(service): State<Arc<Service>>) -> Json<Health> {
    let running = service.limits.at_once - service.places.available_permits();
    Json(Health { languages: service.pool.languages(), running })
}

fn refusal(status: StatusCode, error: &str) -> (StatusCode, Json<Refusal>) {
    (status, Json(Refusal { error: error.into() }))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The maximum size of a snippet's code, which is that of an argument in Linux.
const MAX_CODE: usize = 128 << 10;
/// The maximum size of a request: a snippet and its input.
const LARGEST_REQUEST: usize = 1 << 20;
/// The maximum size of both outputs together, so that many requests at once do not exhaust the service's
/// memory.
const MAX_OUTPUT: usize = 1 << 20;
