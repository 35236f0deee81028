//! Servers of three kinds on loopback, of HTTP/1 and HTTP/2. Each says in `X-Seen` of every answer what it saw of the
//! request: method, target, and the length of the body (nginx does not count it: `-`).

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server; it ends with the value.
pub struct Backend {
    pub address: SocketAddr,
    child: Option<Child>,
    _folder: Option<tempfile::TempDir>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// hyper, within this process.
pub async fn hyper() -> Backend {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = hyper::server::conn::http1::Builder::new();
                server.half_close(true);
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(seen)).await;
            });
        }
    });
    Backend { address, child: None, _folder: None }
}

/// The `h2` crate, within this process; it is what hyper speaks HTTP/2 with.
pub async fn h2() -> Backend {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    Backend { address, child: None, _folder: None }
}

async fn answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let mut length = 0;
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else { return };
        length += piece.len();
        let _ = body.flow_control().release_capacity(piece.len());
    }
    if body.trailers().await.is_err() {
        return;
    }
    let target = head.uri.path_and_query().map_or("*", |target| target.as_str());
    let seen = format!("{} {target} {length}", head.method);
    let _ = respond.send_response(Response::builder().header("x-seen", seen).body(()).unwrap(), true);
}

async fn seen(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let length = body.collect().await?.to_bytes().len();
    let mut response = Response::new(Full::new(Bytes::from_static(b"ok")));
    let seen = format!("{} {} {length}", head.method, head.uri);
    response.headers_mut().insert("x-seen", seen.parse().unwrap());
    Ok(response)
}

/// Go's net/http.
///
/// # Errors
/// Why it can't be had here.
pub fn go() -> Result<Backend, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/h1_servers/server.go");
    let program = folder.path().join("server");
    let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(source).output();
    let built = built.map_err(|error| format!("go is not there: {error}"))?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut child = Command::new(program)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it does not start: {error}"))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Ok(Backend { address: line.trim().parse().unwrap(), child: Some(child), _folder: Some(folder) })
}

/// nginx: the machine's, or Debian's unpacked into the cache. `listening`: what its socket speaks in place of HTTP/1.
///
/// # Errors
/// Why it can't be had here.
pub fn nginx(listening: &str) -> Result<Backend, String> {
    let program = find_nginx()?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let [address, behind] =
        [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()).map(|of| of.local_addr().unwrap());
    let config = folder.path().join("nginx.conf");
    // What it answers by itself it answers before the body; what is behind it gets the body first.
    let text = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr crit;\n\
         events {{}}\n\
         http {{ access_log off; client_body_temp_path body; proxy_temp_path a; fastcgi_temp_path b;\n\
         uwsgi_temp_path c; scgi_temp_path d; lingering_close off;\n\
         server {{ listen {address}{listening}; location / {{ proxy_pass http://{behind};\n\
         add_header X-Seen \"$request_method $request_uri -\" always; }} }}\n\
         server {{ listen {behind}; location / {{ return 200 ok; }} }} }}\n"
    );
    std::fs::File::create(&config).and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
    let child = Command::new(program)
        .args(["-e", "stderr", "-p"])
        .arg(folder.path())
        .arg("-c")
        .arg(&config)
        .spawn()
        .map_err(|error| format!("it does not start: {error}"))?;
    let backend = Backend { address, child: Some(child), _folder: Some(folder) };
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nginx does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(backend)
}

fn find_nginx() -> Result<PathBuf, String> {
    let installed = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"].map(PathBuf::from);
    if let Some(found) = installed.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = set("CINCH_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("cinch")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/cinch")))
        .ok_or("there is no cache for it")?;
    let root = cache.join("nginx");
    let program = root.join("usr/sbin/nginx");
    if !program.is_file() {
        let fresh = tempfile::tempdir().map_err(|error| error.to_string())?;
        run(
            Command::new("apt-get").args(["-q", "-o", "APT::Sandbox::User=root", "download", "nginx"]),
            fresh.path(),
        )?;
        let package = std::fs::read_dir(fresh.path()).map_err(|error| error.to_string())?.next();
        let package = package.ok_or("apt-get downloaded nothing")?.map_err(|error| error.to_string())?.path();
        std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&root), fresh.path())?;
    }
    if program.is_file() { Ok(program) } else { Err("the package has no nginx".into()) }
}

fn run(command: &mut Command, folder: &Path) -> Result<(), String> {
    let output = command.current_dir(folder).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
