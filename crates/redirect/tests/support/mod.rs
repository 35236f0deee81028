//! Network namespaces for tests: each is a thread of this process that runs closures sent to it, so that
//! sockets opened in a closure belong to its namespace. Nothing has a name and all ends with the process.

#![allow(unsafe_code, dead_code)]

use std::io;
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
            // Past the capture of the test harness, which would swallow it for a test that passes.
            let _ =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED {}: {why}\n", $test));
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
