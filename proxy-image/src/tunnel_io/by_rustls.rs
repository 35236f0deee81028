//! Records by rustls, as everybody uses it: it copies and keeps buffers of its own, and its keys never leave it.

use super::TunnelError;
use super::wire::Hear;
use crate::copy::with_scratch;
use cinch_record::RecordError;
use rustls::Connection;
use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// A connection whose records rustls seals and opens.
pub(super) struct ByRustls {
    tls: Connection,
    /// About so many bytes are sealed and not yet sent.
    kept: usize,
}

impl ByRustls {
    pub(super) fn new(mut tls: Connection) -> ByRustls {
        // We write only what a single read gave us, so the bound is that of the read.
        tls.set_buffer_limit(None);
        ByRustls { tls, kept: 0 }
    }

    /// Bytes that the socket did not take.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Seals `parts` as one record.
    pub(super) fn seal(&mut self, parts: &[&[u8]]) -> Result<(), TunnelError> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = self.tls.writer().write_vectored(&slices).map_err(TunnelError::Broken)?;
        self.kept += written + cinch_record::OVERHEAD;
        if written != parts.iter().map(|part| part.len()).sum::<usize>() {
            return Err(TunnelError::Broken(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    pub(super) fn close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    pub(super) fn poll_send(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(tcp)) {
                Ok(sent) => self.kept = self.kept.saturating_sub(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(tcp.poll_write_ready(cx)).map_err(TunnelError::Broken)?;
                }
                Err(error) => return Poll::Ready(Err(TunnelError::Broken(error))),
            }
        }
        self.kept = 0;
        Poll::Ready(Ok(()))
    }

    /// `most`: bytes of sealed records.
    pub(super) fn poll_receive(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        most: usize,
        hear: &mut Hear<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        // The handshake may have read past its own end.
        if self.take_in(hear)? {
            return Poll::Ready(Ok(()));
        }
        with_scratch(|scratch| {
            let most = most.min(scratch.len());
            let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(tcp).poll_read(cx, &mut buffer)).map_err(TunnelError::Broken)?;
            let mut input = buffer.filled();
            if input.is_empty() {
                return Poll::Ready(Err(TunnelError::Broken(io::ErrorKind::UnexpectedEof.into())));
            }
            while !input.is_empty() {
                let before = input.len();
                self.tls.read_tls(&mut input).map_err(TunnelError::Broken)?;
                let processed = self.tls.process_new_packets();
                // What came before the fault counts: deliver it, then report the fault.
                let taken = self.take_in(hear);
                processed.map_err(fault)?;
                taken?;
                if input.len() == before {
                    break;
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Takes in all plaintext that rustls holds; says whether there was any.
    fn take_in(&mut self, hear: &mut Hear<'_>) -> Result<bool, TunnelError> {
        let mut any = false;
        loop {
            let length = match self.tls.reader().into_first_chunk() {
                Ok([]) => return Err(TunnelError::Closed),
                Ok(chunk) => {
                    hear(chunk)?;
                    chunk.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(TunnelError::Broken(error)),
            };
            self.tls.reader().consume(length);
            any = true;
        }
    }
}

fn fault(error: rustls::Error) -> TunnelError {
    match error {
        rustls::Error::AlertReceived(alert) => RecordError::Alert(alert.into()).into(),
        other => RecordError::Tls(other).into(),
    }
}

/// The socket as rustls writes to it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
