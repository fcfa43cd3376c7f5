//! The service's command: it serves, or starts a service and puts load on it.
//!
//! `cargo run -p sandbox-service -- --load 20` demonstrates it, even on a machine whose KVM cannot run Linux:
//! everything then happens on an emulated host.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use coracle::host::{self, KvmPolicy};
use sandbox_service::load;
use sandbox_service::plan::MachinePlan;
use sandbox_service::pool::Pool;
use sandbox_service::service::{self, Limits};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Runs untrusted snippets, each in a virtual machine of its own.
///
/// POST /run {"language": "shell" or "python", "code": TEXT, "stdin": TEXT, "timeout_ms": NUMBER}; GET
/// /health.
#[derive(Parser)]
struct Args {
    /// Address to serve on; port 0 chooses a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Snippets to run at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
    /// Time limit of a snippet, in seconds
    #[arg(long, default_value_t = 5)]
    limit: u64,
    /// How long a request waits for a machine, in seconds
    #[arg(long, default_value_t = 30)]
    queue: u64,
    /// Memory of a machine, in MiB
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// CPU time that a machine may use, in percent of one CPU
    #[arg(long)]
    cpu: Option<u32>,
    /// Root file system: a directory, tar or image; it needs python3 for snippets in Python
    #[arg(long)]
    root: Option<PathBuf>,
    /// Run this many snippets against a service started here, print the times, those with a boot for each
    /// request too, and exit
    #[arg(long, value_name = "COUNT")]
    load: Option<usize>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // An emulated host has its own network, in which outside clients could not reach the service.
    let policy = if args.load.is_some() { KvmPolicy::Auto } else { KvmPolicy::Hardware };
    let shares: Vec<_> = args.root.iter().cloned().collect();
    host::ensure_kvm(policy, &shares)
        .context("no KVM to serve with (`--load COUNT` shows the service without)")?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args))
}

async fn run(args: Args) -> Result<()> {
    let plan = MachinePlan::new(args.root.as_deref(), args.memory, args.cpu)?;
    // A load is measured to its end, however slow the host is.
    let of = |seconds| if args.load.is_some() { LOAD_LIMIT } else { Duration::from_secs(seconds) };
    let limits = Limits { run: of(args.limit), at_once: args.at_once.into(), queue: of(args.queue) };
    let forks = Pool::of_forks(&plan).await.context("no template of a machine")?;
    let Some(count) = args.load else { return serve(args.listen, forks, limits).await };
    let languages = forks.languages();
    let (forks, boots) = (background(forks, limits).await?, background(Pool::Boots(plan), limits).await?);
    for language in languages {
        let of = language.interpreter();
        let alone = load::run(forks, language, count, 1).await?;
        println!("{of}: request to first byte of output, a fork each: {}", alone.first_byte());
        let boots = load::run(boots, language, count.min(MOST_BOOTS), 1).await?;
        println!("{of}: request to first byte of output, a boot each: {}", boots.first_byte());
        let clients = args.at_once.into();
        println!(
            "{of}: {} clients, a fork each: {}",
            clients,
            load::run(forks, language, count, clients).await?
        );
    }
    Ok(())
}

async fn serve(listen: SocketAddr, pool: Pool, limits: Limits) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("serving on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, service::router(pool, limits));
    server.with_graceful_shutdown(end_requested()).await.context("the server has failed")
}

/// Starts a service for a load, and returns its address.
async fn background(pool: Pool, limits: Limits) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, service::router(pool, limits)).await });
    Ok(address)
}

/// The number of boots that are enough to compare: they take seconds on an emulated host.
const MOST_BOOTS: usize = 5;
const LOAD_LIMIT: Duration = Duration::from_secs(3600);

/// Completes at the first SIGINT or SIGTERM; requests in flight are still answered.
async fn end_requested() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
