//! What a relay tells its observer.

use super::*;

/// Says `words` once, and takes nothing.
struct Gone(&'static [u8]);

impl Side for Gone {
    fn poll_forward(
        &mut self,
        _: &mut Context<'_>,
        _: usize,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<Moved, Failure>> {
        let words = std::mem::take(&mut self.0);
        if words.is_empty() {
            return Poll::Pending;
        }
        sink(words, false);
        Poll::Ready(Ok(Moved { bytes: words.len(), fin: false }))
    }

    fn send(&mut self, _: &[u8], _: bool) -> Result<(), Failure> {
        Err(Failure::Reset)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Count(usize);

impl Observer for Count {
    fn moved(&mut self, _: Which, bytes: usize) {
        self.0 += bytes;
    }

    fn poll_cut(&mut self, _: &mut Context<'_>) -> Option<Reason> {
        None
    }
}

#[tokio::test]
async fn what_was_handed_to_a_side_that_failed_over_it_was_moved() {
    let (mut client, mut app, mut count) = (Gone(b"words"), Gone(b""), Count::default());
    let end = relay(&mut client, &mut app, &mut count).await;
    assert_eq!((end, count.0), (End::Failed(Which::Second, Failure::Reset), 5));
}
