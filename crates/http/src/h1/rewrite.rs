//! A head that must be changed on its way to the app, written anew.

use super::head::{Request, connection_without_upgrade};
use crate::fields::known;
use crate::{Patch, Version};

/// Appends the head as the app shall see it.
pub(super) fn write(request: &Request<'_, '_>, patch: &Patch, out: &mut Vec<u8>) {
    let head = &request.head;
    let version = if head.version == Version::Http10 { " HTTP/1.0\r\n" } else { " HTTP/1.1\r\n" };
    for part in [head.method, " ", patch.target().unwrap_or(head.target), version] {
        out.extend_from_slice(part.as_bytes());
    }
    if request.edits.host {
        field("host", head.authority.unwrap_or_default().as_bytes(), out);
    }
    for of in request.fields {
        if request.edits.keeps(known(of.name)) && !patch.removes(of.name) {
            field(of.name, of.value, out);
        }
    }
    // HTTP/1.0 without a Connection field closes by itself.
    if request.edits.upgrade && !request.edits.connection {
        connection(request, out);
    }
    for (name, value) in patch.added() {
        field(name, value, out);
    }
    out.extend_from_slice(b"\r\n");
}

fn connection(request: &Request<'_, '_>, out: &mut Vec<u8>) {
    let mut separator = "connection: ";
    for token in connection_without_upgrade(request.fields) {
        out.extend_from_slice(separator.as_bytes());
        out.extend_from_slice(token.as_bytes());
        separator = ", ";
    }
    if separator == ", " {
        out.extend_from_slice(b"\r\n");
    }
}

fn field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
