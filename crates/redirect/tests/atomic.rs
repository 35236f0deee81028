//! A table is replaced whole or not at all, whatever becomes of the program that loads it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use cinch_redirect::{Exempt, RedirectConfig, RedirectError, install, is_installed};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::Namespace;

/// Tells a run of this program that it is to load tables until it is killed.
const ROLE: &str = "CINCH_TEST_LOADER";

fn of_cgroup(id: u64, level: u32) -> RedirectConfig {
    RedirectConfig { exempt: Exempt::Cgroup { id, level }, ..RedirectConfig::default() }
}

/// Not a test of its own: what the others kill.
#[test]
fn a_loader_of_this_test() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    for id in (1..=2).cycle() {
        install(&of_cgroup(id, 3)).unwrap();
        println!("loaded {id}");
    }
}

#[test]
fn a_program_that_is_killed_while_it_loads_leaves_a_whole_table() {
    need_namespaces!("a_program_that_is_killed_while_it_loads_leaves_a_whole_table");
    let pod = Namespace::new();
    pod.run(|| install(&of_cgroup(1, 3))).unwrap();
    let mut left = [0; 2];
    for round in 0..60 {
        let mut loader = pod.run(|| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "a_loader_of_this_test", "--nocapture"]).env(ROLE, "1");
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        });
        // Whichever stands at that moment, the other is being loaded.
        let loaded = format!("loaded {}", 1 + round % 2);
        let words = BufReader::new(loader.stdout.take().unwrap());
        words.lines().map(Result::unwrap).find(|line| line.ends_with(&loaded)).unwrap();
        // A batch takes the kernel some milliseconds: the moments are spread over several.
        std::thread::sleep(Duration::from_micros(round * 331));
        loader.kill().unwrap();
        loader.wait().unwrap();
        let stands = [1, 2].map(|id| pod.run(move || is_installed(&of_cgroup(id, 3))).unwrap());
        assert!(stands[0] != stands[1], "round {round}: {stands:?}");
        left[usize::from(stands[1])] += 1;
    }
    assert!(left[0] > 0 && left[1] > 0, "both were met, or nothing was loaded at all: {left:?}");
}

#[test]
fn a_table_of_which_one_rule_is_refused_leaves_the_one_before() {
    need_namespaces!("a_table_of_which_one_rule_is_refused_leaves_the_one_before");
    let pod = Namespace::new();
    let good = of_cgroup(1, 3);
    pod.run(move || install(&good)).unwrap();
    // No cgroup is so deep (`nft_socket` takes a byte): the rule is in the middle of the batch.
    let refused = pod.run(|| install(&of_cgroup(1, 300))).unwrap_err();
    match refused {
        RedirectError::Refused { step, .. } => assert!(step.contains("leave the proxy"), "{step}"),
        other => panic!("{other}"),
    }
    assert!(pod.run(move || is_installed(&good)).unwrap());
}
