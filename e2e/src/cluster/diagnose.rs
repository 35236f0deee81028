//! What a person needs after a failure: pods, events, the words of those that are not ready, the ends of logs.

use super::Cluster;
use crate::process::tail;
use crate::terminal;
use serde_json::Value;

/// Lines of each part, and characters of a line: a screen for each, not a log.
const LINES: usize = 25;
const WIDTH: usize = 240;
/// Errors that Kubernetes' programs log while all is well: a file that is empty on purpose, and the polling
/// before the API server is ready.
const HARMLESS: [&str; 4] = ["requestheader", "manifest file is empty", "Found stale data", "[+]ping ok"];
/// Pods that are described in full.
const PODS: usize = 4;

impl Cluster {
    /// Prints pods, the last warnings, what Cinch's own pods said, pods that are not ready with their last
    /// words, and the last errors of the cluster's own programs.
    pub fn print_what_matters(&self) {
        terminal::say("what the cluster says:");
        self.section("pods", &["get", "pods", "-A", "-o", "wide"]);
        let warnings = ["get", "events", "-A", "--field-selector=type!=Normal", "--sort-by=.lastTimestamp"];
        self.section("warnings", &warnings);
        self.print_parts();
        for (namespace, pod) in self.unready().into_iter().take(PODS) {
            self.section(&format!("{namespace}/{pod}"), &["describe", "pod", "-n", &namespace, &pod]);
            let logs = ["logs", "-n", &namespace, &pod, "--all-containers", "--prefix", "--tail=15"];
            self.section(&format!("logs of {namespace}/{pod}"), &logs);
        }
        let mut folders = vec![self.layout.logs()];
        folders.extend(self.layout.nodes(self.nodes).iter().map(|node| node.file("logs")));
        for entry in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
            let text = tail(&entry.path(), 2000);
            let errors = text.lines().filter(|line| is_error(line)).map(str::to_owned).collect::<Vec<_>>();
            let last = errors.get(errors.len().saturating_sub(4)..).unwrap_or_default();
            if !last.is_empty() {
                print(&entry.path().display().to_string(), last.iter().map(String::as_str));
            }
        }
    }

    /// Prints the pods of Cinch's own parts, and what they said last.
    pub fn print_parts(&self) {
        let own = crate::install::NAMESPACE;
        self.section("Cinch's own parts", &["get", "pods,daemonsets", "-n", own, "-o", "wide"]);
        for component in ["operator", "webhook", "node"] {
            let pods = format!("--selector=app.kubernetes.io/component={component}");
            let logs = ["logs", "-n", own, &pods, "--prefix", "--tail=12"];
            self.section(&format!("{component}'s logs"), &logs);
        }
    }

    /// Prints what a namespace of a test holds: pods, postures and policies, all events, and the pods that are not
    /// ready in full.
    pub fn print_namespace(&self, namespace: &str) {
        let kinds = "pods,postures,authorizationpolicies,peerauthentications,requestauthentications";
        self.section(&format!("what {namespace} holds"), &["get", kinds, "-n", namespace, "-o", "wide"]);
        let events = ["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"];
        self.section(&format!("all events of {namespace}"), &events);
        for (_, pod) in self.unready().into_iter().filter(|(of, _)| of == namespace).take(PODS) {
            self.section(&format!("{namespace}/{pod}"), &["describe", "pod", "-n", namespace, &pod]);
        }
        let logs =
            ["logs", "-n", namespace, "--selector=app", "--container=cinch-proxy", "--prefix", "--tail=8"];
        self.section(&format!("sidecars of {namespace}"), &logs);
    }

    fn section(&self, name: &str, arguments: &[&str]) {
        let text = self.kubectl(arguments).map_or_else(|error| format!("{error:#}"), |output| output.text());
        let lines: Vec<&str> = text.lines().collect();
        print(name, lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().iter().copied());
    }

    fn unready(&self) -> Vec<(String, String)> {
        let Ok(pods) = self.get_json(&["pods", "-A"]) else { return Vec::new() };
        let word = |pod: &Value, path: &str| {
            pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let ready = |pod: &&Value| {
            let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
            let is_ready = |condition: &Value| {
                word(condition, "/type") == "Ready"
                    && (word(condition, "/status") == "True" || word(condition, "/reason") == "PodCompleted")
            };
            conditions.is_some_and(|conditions| conditions.iter().any(is_ready))
        };
        let items = pods.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let unready = items.iter().filter(|pod| !ready(pod));
        unready.map(|pod| (word(pod, "/metadata/namespace"), word(pod, "/metadata/name"))).collect()
    }
}

fn is_error(line: &str) -> bool {
    let error = line.starts_with('E') || line.starts_with('F') || line.contains("level=error");
    error && !HARMLESS.iter().any(|harmless| line.contains(harmless))
}

fn print<'a>(name: &str, lines: impl Iterator<Item = &'a str>) {
    let cut = lines.map(|line| line.chars().take(WIDTH).collect::<String>()).collect::<Vec<_>>().join("\n");
    terminal::show(&format!("--- {name}\n{cut}"));
}
