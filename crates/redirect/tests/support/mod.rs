//! Network namespaces for tests: each is a thread of this process that runs closures sent to it, so that
//! sockets opened in a closure belong to its namespace. Nothing has a name and all ends with the process.

#![allow(unsafe_code, dead_code)]

use std::io;
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::FromRawFd;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};

type Job = Box<dyn FnOnce() + Send>;

/// Why namespaces can't be made here; `None` when they can.
pub fn obstacle() -> Option<&'static str> {
    // SAFETY: geteuid has no arguments and can't fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root");
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("needs the ip program (iproute2)");
    }
    None
}

/// Leaves the test with a line that says why, when it can't run here.
#[macro_export]
macro_rules! need_namespaces {
    ($test:literal) => {
        if let Some(why) = support::obstacle() {
            // Past the capture of the test harness, which would swallow it for a test that passes; in one piece,
            // between the lines of other tests.
            let line = format!("SKIPPED {}: {why}\n", $test);
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            return;
        }
    };
}

/// A network namespace with a thread in it.
pub struct Namespace {
    jobs: Sender<Job>,
    thread: i32,
}

impl Namespace {
    /// A new namespace with loopback up.
    pub fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (entered, wait) = channel();
        std::thread::spawn(move || {
            // SAFETY: unshare changes only this thread's namespace; gettid can't fail.
            let thread = unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0, "{}", io::Error::last_os_error());
                libc::gettid()
            };
            entered.send(thread).unwrap();
            for job in queue {
                job();
            }
        });
        let this = Self { jobs, thread: wait.recv().unwrap() };
        this.ip("link set lo up");
        this
    }

    /// The kernel's number of the thread, by which others move devices here.
    pub fn thread(&self) -> i32 {
        self.thread
    }

    /// Runs `job` in the namespace and gives its result; a panic of it is the caller's.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, wait) = channel();
        let job = move || {
            let _ = done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        };
        self.jobs.send(Box::new(job)).unwrap();
        match wait.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs the ip program in the namespace.
    pub fn ip(&self, arguments: &str) {
        let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(words).output().unwrap());
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A pod's namespace and one outside it, with a veth between them.
pub struct Pair {
    /// 10.9.0.2 and fd00:9::2, default routes to `outside`.
    pub pod: Namespace,
    /// 10.9.0.1 and fd00:9::1.
    pub outside: Namespace,
}

impl Pair {
    pub fn new() -> Self {
        let (pod, outside) = (Namespace::new(), Namespace::new());
        pod.ip(&format!("link add eth0 type veth peer name out0 netns {}", outside.thread()));
        for (namespace, device, host) in [(&pod, "eth0", 2), (&outside, "out0", 1)] {
            namespace.ip(&format!("link set {device} up"));
            namespace.ip(&format!("addr add 10.9.0.{host}/24 dev {device}"));
            namespace.ip(&format!("addr add fd00:9::{host}/64 dev {device} nodad"));
        }
        pod.ip("route add default via 10.9.0.1");
        pod.ip("-6 route add default via fd00:9::1");
        Self { pod, outside }
    }
}

/// Runs `job` with another user for the files and sockets that this thread makes.
pub fn as_user<T>(uid: u32, job: impl FnOnce() -> T) -> T {
    let set = |uid: u32| {
        // SAFETY: the raw system call changes this thread alone (glibc's wrapper would change all of them).
        let done = unsafe { libc::syscall(libc::SYS_setresuid, u32::MAX, uid, u32::MAX) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    set(uid);
    let value = job();
    set(0);
    value
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn in_kernels_words(address: SocketAddrV4) -> libc::sockaddr_in {
    // SAFETY: sockaddr_in is plain integers.
    let mut words: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    words.sin_family = libc::AF_INET as libc::sa_family_t;
    words.sin_port = address.port().to_be();
    words.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
    words
}

/// Dials `to` from the address and port `from`, at most for two seconds.
pub fn dial_from(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<TcpStream> {
    let (from, to) = (in_kernels_words(from), in_kernels_words(to));
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let limit = libc::timeval { tv_sec: 2, tv_usec: 0 };
    let limit_length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: every pointer is to a local of the length that goes with it; the descriptor is owned from its birth.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0))?;
        let stream = TcpStream::from_raw_fd(socket);
        let limit = (&raw const limit).cast();
        check(libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_SNDTIMEO, limit, limit_length))?;
        check(libc::bind(socket, (&raw const from).cast(), length))?;
        check(libc::connect(socket, (&raw const to).cast(), length))?;
        Ok(stream)
    }
}

/// Sends a bare ACK that belongs to no connection. `options` stand in the header, a multiple of four bytes.
pub fn send_stray_ack(from: SocketAddrV4, to: SocketAddrV4, options: &[u8]) {
    let mut segment = Vec::new();
    segment.extend_from_slice(&from.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 9]);
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    segment.extend_from_slice(&[words << 4, 0x10, 0x20, 0, 0, 0, 0, 0]);
    segment.extend_from_slice(options);
    // RFC 9293, 3.1: the sum goes over addresses, protocol and length too.
    let mut summed = [from.ip().octets(), to.ip().octets()].concat();
    summed.extend_from_slice(&[0, 6, 0, u8::try_from(segment.len()).unwrap()]);
    summed.extend_from_slice(&segment);
    let sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    let to = in_kernels_words(SocketAddrV4::new(*to.ip(), 0));
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: both pointers are to locals of the lengths that go with them; the descriptor is closed.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)).unwrap();
        let (bytes, count) = (segment.as_ptr().cast(), segment.len());
        let sent = libc::sendto(socket, bytes, count, 0, (&raw const to).cast(), length);
        assert_eq!(sent, isize::try_from(count).unwrap(), "{}", io::Error::last_os_error());
        libc::close(socket);
    }
}
