//! A question to the cluster's DNS, from a pod: over TCP, so that it goes where the pod's other connections go.

use crate::place::Place;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The Service `kube-system/kube-dns`.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);
/// RFC 1035, section 3.2.
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// The IPv4 addresses of `name`, through any aliases; none when it has none.
///
/// # Errors
/// When no answer comes, or one that can't be read.
pub fn addresses(from: &Place, name: &str) -> Result<Vec<IpAddr>> {
    let question = question(name)?;
    let mut stream = from.connect(SERVER)?;
    stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
    stream.write_all(&question)?;
    let mut length = [0u8; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0u8; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Reader { message: &answer, at: 0 }.addresses().context("an answer that can't be read")
}

fn question(name: &str) -> Result<Vec<u8>> {
    // An id, "recursion desired", one question, nothing else.
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        ensure!(!label.is_empty() && label.len() < 64, "{name} is no name");
        message.push(u8::try_from(label.len())?);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&TYPE_A.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    Ok(message)
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl Reader<'_> {
    fn addresses(mut self) -> Option<Vec<IpAddr>> {
        self.at = 4;
        let (questions, answers) = (self.number()?, self.number()?);
        self.at = 12;
        for _ in 0..questions {
            self.name()?;
            self.at += 4;
        }
        let mut found = Vec::new();
        for _ in 0..answers {
            self.name()?;
            let kind = self.number()?;
            self.at += 6;
            let length = usize::from(self.number()?);
            let data = self.message.get(self.at..self.at + length)?;
            if kind == TYPE_A {
                found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?));
            }
            self.at += length;
        }
        Some(found)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.message.get(self.at..self.at + 2)?;
        self.at += 2;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Passes over a name: labels, until an empty one or a pointer to the rest.
    fn name(&mut self) -> Option<()> {
        loop {
            let length = *self.message.get(self.at)?;
            match length {
                0 => break self.at += 1,
                0xc0.. => break self.at += 2,
                _ => self.at += 1 + usize::from(length),
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_behind_an_alias() {
        let mut answer = question("a.b").unwrap();
        answer[7] = 2;
        // An alias for its own name, then an address.
        answer.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 5, 0, 2, 0xc0, 12]);
        answer.extend_from_slice(&[1, b'c', 0, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 0, 7]);
        let read = |message: &[u8]| Reader { message, at: 0 }.addresses();
        assert_eq!(read(&answer), Some(vec![IpAddr::from([10, 96, 0, 7])]));
        assert_eq!(read(&answer[..answer.len() - 1]), None);
        assert_eq!(read(&question("a.b").unwrap()), Some(vec![]));
        assert!(question("a..b").is_err());
    }
}
