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
pub(super) struct ByRustls(Connection);

impl ByRustls {
    pub(super) fn new(mut tls: Connection) -> ByRustls {
        // We write only what a single read gave us, so the bound is that of the read.
        tls.set_buffer_limit(None);
        ByRustls(tls)
    }

    /// Seals `parts` as one record.
    pub(super) fn seal(&mut self, parts: &[&[u8]]) -> Result<(), TunnelError> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = self.0.writer().write_vectored(&slices).map_err(TunnelError::Broken)?;
        if written != parts.iter().map(|part| part.len()).sum::<usize>() {
            return Err(TunnelError::Broken(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    pub(super) fn close_notify(&mut self) {
        self.0.send_close_notify();
    }

    pub(super) fn poll_send(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        while self.0.wants_write() {
            match self.0.write_tls(&mut Socket(tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(tcp.poll_write_ready(cx)).map_err(TunnelError::Broken)?;
                }
                Err(error) => return Poll::Ready(Err(TunnelError::Broken(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_receive(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        hear: &mut Hear<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        // The handshake may have read past its own end.
        if self.take_in(hear)? {
            return Poll::Ready(Ok(()));
        }
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(tcp).poll_read(cx, &mut buffer)).map_err(TunnelError::Broken)?;
            let mut input = buffer.filled();
            if input.is_empty() {
                return Poll::Ready(Err(TunnelError::Broken(io::ErrorKind::UnexpectedEof.into())));
            }
            while !input.is_empty() {
                let before = input.len();
                self.0.read_tls(&mut input).map_err(TunnelError::Broken)?;
                let processed = self.0.process_new_packets();
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
            let length = match self.0.reader().into_first_chunk() {
                Ok([]) => return Err(TunnelError::Closed),
                Ok(chunk) => {
                    hear(chunk)?;
                    chunk.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(TunnelError::Broken(error)),
            };
            self.0.reader().consume(length);
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
