//! The proof that outbound connections are captured: the proxy dials an address that is always redirected, and
//! its own outbound side notes what arrives. A dial that comes back unnoted has gone elsewhere.

use crate::evidence::Evidence;
use cinch_redirect::SELF_TEST_ADDRESS;
use prometheus_client::metrics::counter::Counter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// The discard port: should the redirect be missing, nobody is bothered.
const PORT: u16 = 9;
/// The dial stays on loopback: it takes microseconds.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Proofs are stamped in whole milliseconds, so one may look that much older than it is.
const RESOLUTION: Duration = Duration::from_millis(1);
/// Until the first proof there is nothing else to wait for.
const FIRST_TRIES: Duration = Duration::from_millis(200);
/// No further apart than this, however rarely reports are wanted.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

/// Dials once; whether the outbound side noted it.
pub async fn prove_outbound(evidence: &Evidence) -> bool {
    let begin = Instant::now();
    let dial = async {
        let mut stream = TcpStream::connect(SocketAddr::new(SELF_TEST_ADDRESS.into(), PORT)).await?;
        // The outbound side notes the proof and closes.
        stream.read(&mut [0; 1]).await
    };
    let _ = timeout(TIMEOUT, dial).await;
    evidence.outbound_proof_age().is_some_and(|age| age <= begin.elapsed() + RESOLUTION)
}

/// Proves the redirect again and again: at `interval` (at most [`LONGEST_INTERVAL`]), faster until the first proof.
pub async fn run(evidence: Arc<Evidence>, mut interval: watch::Receiver<Duration>, failures: Counter) {
    let mut proved_before = None;
    loop {
        let proved = prove_outbound(&evidence).await;
        if !proved {
            failures.inc();
            evidence.note_outbound_failure();
        }
        if proved_before != Some(proved) {
            match proved {
                true => tracing::info!("the outbound redirect is proved"),
                false => tracing::warn!("the self-test of the outbound redirect failed"),
            }
        }
        proved_before = Some(proved);
        let pause = if proved { (*interval.borrow()).min(LONGEST_INTERVAL) } else { FIRST_TRIES };
        tokio::select! {
            () = sleep(pause) => {}
            // A closed channel would be ready at once and for ever.
            Ok(()) = interval.changed() => {}
        }
    }
}
