//! `/proc/PID/cgroup` and `/proc/PID/mountinfo` of processes that pods run: nothing passes that does not name exactly
//! the pod that was asked for.
#![no_main]

#[allow(dead_code)]
#[path = "../../node/src/cgroup.rs"]
mod cgroup;
#[allow(dead_code)]
#[path = "../../node/src/mounts.rs"]
mod mounts;

use libfuzzer_sys::fuzz_target;

const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";

fuzz_target!(|text: &str| {
    if let Ok(found) = cgroup::container_of(text, UID) {
        let parts: Vec<&str> = found.path.split('/').skip(1).collect();
        assert_eq!(parts.len(), found.level as usize);
        assert!(parts.iter().all(|part| !matches!(*part, "" | "." | "..")));
        assert!(found.path.contains(UID) || found.path.contains(&UID.replace('-', "_")));
        assert!(text.contains(&found.path));
    }
    let _ = mounts::PodsDirectory::learn(text).map(|directory| directory.container(text, UID).map(str::len));
    let own = format!("1 2 254:0 /k/pods/{UID}/containers/cinch-node/ab /dev/termination-log rw - x\n");
    let directory = mounts::PodsDirectory::learn(&own).expect("as a kubelet mounts it");
    if let Ok(name) = directory.container(text, UID) {
        assert!(text.contains(&format!("/k/pods/{UID}/containers/{name}/")));
    }
});
