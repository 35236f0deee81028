//! The apps behind the attacked proxy: HTTP/1 on 8080, HTTP/2 on 8082, an echo on 9090. `/big` is an answer without
//! an end, and so is all that 7070 says.

use bytes::Bytes;
use http::Response;
use std::future::Future;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub const HTTP: u16 = 8080;
pub const HTTP2: u16 = 8082;
pub const ECHO: u16 = 9090;

pub const TORRENT: u16 = 7070;

/// Serves all of them; call it in the server's namespace.
pub async fn serve() {
    // On a thread of their own, in the same namespace: honest clients of the others shall not wait for them here.
    std::thread::spawn(|| crate::attackers::runtime().block_on(torrents()));
    tokio::join!(listen(HTTP, web), listen(HTTP2, web2), listen(ECHO, echo));
}

async fn listen<F: Future<Output = ()> + Send + 'static>(port: u16, work: fn(TcpStream) -> F) {
    serve_each(TcpListener::bind(("0.0.0.0", port)).await.unwrap(), work).await;
}

/// The kernel keeps little for each, because there are thousands.
async fn torrents() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(16 * 1024).unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([0, 0, 0, 0], TORRENT).into()).unwrap();
    serve_each(socket.listen(4096).unwrap(), torrent).await;
}

async fn torrent(mut stream: TcpStream) {
    while stream.write_all(&[7; 16 * 1024]).await.is_ok() {}
}

async fn serve_each<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    work: fn(TcpStream) -> F,
) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(work(stream));
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn web(stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut target = None;
    loop {
        line.clear();
        match stream.read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if target.is_none() {
            target = line.split(' ').nth(1).map(str::to_owned);
        }
        if line != "\r\n" {
            continue;
        }
        let answer = match target.take().as_deref() {
            Some("/big") => b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n".as_slice(),
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
        if answer.len() > 50 {
            while stream.write_all(&[7; 16 * 1024]).await.is_ok() {}
            return;
        }
    }
}

async fn web2(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let is_big = request.uri().path() == "/big";
        tokio::spawn(async move {
            let Ok(mut body) = respond.send_response(Response::new(()), !is_big) else { return };
            if !is_big {
                return;
            }
            loop {
                body.reserve_capacity(16 * 1024);
                match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
                    Some(Ok(room)) => {
                        if body.send_data(Bytes::from(vec![7; room]), false).is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
    }
}
