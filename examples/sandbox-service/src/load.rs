//! A client that generates load and measures the service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::service::{Language, Report, Snippet};

/// A client of one service.
#[derive(Clone)]
pub struct ServiceClient {
    client: Client<HttpConnector, Body>,
    address: SocketAddr,
}

impl ServiceClient {
    /// Creates a client of the service at this address.
    pub fn new(address: SocketAddr) -> ServiceClient {
        ServiceClient { client: Client::builder(TokioExecutor::new()).build_http(), address }
    }

    /// Runs a snippet, and returns the service's status and report.
    ///
    /// # Errors
    /// The service does not answer, or its answer cannot be parsed.
    pub async fn run<T: DeserializeOwned>(&self, snippet: &impl Serialize) -> Result<(StatusCode, T)> {
        let body = serde_json::to_vec(snippet)?;
        self.ask(Method::POST, "/run", body.into()).await
    }

    /// Requests a page whose answer is JSON.
    ///
    /// # Errors
    /// See [`ServiceClient::run`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<(StatusCode, T)> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let request = request.header("content-type", "application/json").body(body)?;
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        Ok((status, serde_json::from_slice(&bytes).with_context(|| format!("{status}: {text}"))?))
    }
}

/// Lets `clients` clients run `count` snippets of a language in all, each of which must give its own answer.
///
/// # Errors
/// A snippet gives another answer.
pub async fn run(
    address: SocketAddr,
    language: Language,
    count: usize,
    clients: usize,
) -> Result<LoadReport> {
    let client = ServiceClient::new(address);
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (client, next) = (client.clone(), next.clone());
            tokio::spawn(async move {
                let (mut times, mut first_bytes) = (Vec::new(), Vec::new());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok::<_, anyhow::Error>((times, first_bytes));
                    }
                    let start = Instant::now();
                    first_bytes.push(one(&client, language, number).await?);
                    times.push(start.elapsed());
                }
            })
        })
        .collect();
    let (mut times, mut first_bytes) = (Vec::new(), Vec::new());
    for task in tasks {
        let (of_task, first_bytes_of_task) = task.await??;
        times.extend(of_task);
        first_bytes.extend(first_bytes_of_task);
    }
    let whole = start.elapsed();
    times.sort_unstable();
    first_bytes.sort_unstable();
    Ok(LoadReport { times, first_bytes, whole })
}

/// Runs one snippet, and returns the time from the request to the first byte of its output.
async fn one(client: &ServiceClient, language: Language, number: usize) -> Result<Duration> {
    // A machine in which another snippet has run would still have its file.
    let code = match language {
        Language::Shell => "test -e /tmp/mark && exit 99; : > /tmp/mark; read x; echo $((x * 2))",
        Language::Python => "open('/tmp/mark', 'x'); print(int(input()) * 2)",
    };
    let snippet = Snippet { language, code: code.into(), stdin: format!("{number}\n"), timeout_ms: None };
    let (status, report): (_, Report) = client.run(&snippet).await?;
    ensure!(status == StatusCode::OK && report.code == Some(0), "snippet {number}: {status}, {report:?}");
    ensure!(report.stdout == format!("{}\n", number * 2), "snippet {number}: {report:?}");
    let first_byte = report.first_byte_ms.context("a snippet with output has a first byte")?;
    Ok(Duration::from_secs_f64(first_byte / 1e3))
}

/// The result of a load.
#[derive(Debug)]
pub struct LoadReport {
    /// The time from each request to its answer, in ascending order.
    times: Vec<Duration>,
    /// The time from each request to the first byte of its snippet's output, in ascending order.
    first_bytes: Vec<Duration>,
    whole: Duration,
}

impl LoadReport {
    /// Returns the number of snippets that ran.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// Returns the times from the request to the first byte of output, for people.
    pub fn first_byte(&self) -> String {
        let [median, p99] = [50, 99].map(|per_cent| quantile(&self.first_bytes, per_cent));
        format!("median {median:.1} ms, p99 {p99:.1} ms ({} snippets)", self.count())
    }
}

/// Returns a quantile of sorted times in milliseconds.
fn quantile(times: &[Duration], per_cent: usize) -> f64 {
    let at = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default().as_secs_f64() * 1e3
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.count() as f64 / self.whole.as_secs_f64();
        let [median, p99] = [50, 99].map(|per_cent| quantile(&self.times, per_cent));
        write!(f, "{} snippets, {rate:.1} a second, median {median:.0} ms, p99 {p99:.0} ms", self.count())
    }
}
