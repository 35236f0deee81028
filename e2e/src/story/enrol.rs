//! Enrolment of running workloads, what the webhook makes of each kind, and the identity that each gets.

use super::{Story, shape};
use crate::cluster_tests::RESTRICTED;
use crate::install::Redirect;
use crate::see::{PODS, See, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SHOP: &str = include_str!("../../manifests/shop.yaml");
const LEGACY: &str = include_str!("../../manifests/legacy.yaml");
const ONLY_DNS: &str = "only-dns";
/// A namespace in which nothing runs.
const EMPTY: &str = "empty";
const BATCH: &str = include_str!("../../manifests/batch.yaml");
/// What the end of a Job with the sidecar may take longer: the kubelet's own second or two, and one because the
/// API's times are whole seconds. Where a Job without it takes longer to end than that, as much again.
const JOB_SLACK: Duration = Duration::from_secs(3);

/// How long a Job took, by the API server's own times.
struct JobTimes {
    /// From its start to its completion.
    whole: Duration,
    /// From the end of its app to its completion: the sidecar ends in between.
    ending: Duration,
}

/// The installation passes its own checks. Deployments run, unmeshed; the CLI enrols them; the Posture follows to
/// n/n.
pub fn enrol(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    let check = see.cluster.cinch(&["check"])?;
    terminal::show(&format!("$ kubectl cinch check\n{}", check.text().trim_end()));
    ensure!(check.ok(), "kubectl cinch check: {}", check.text());
    see.apply(&shop(story))?;
    see.apply(LEGACY)?;
    // From the beginning: without anybody who speaks plaintext the operator would promote within seconds.
    see.kubectl(&["scale", "-n", "legacy", "deployment/old-client", "--replicas=1"])?;
    for workload in ["deployment/api", "deployment/web", "statefulset/db"] {
        see.rolled_out("shop", workload)?;
    }
    story.web_goes_on(20)?;
    let named = what_would_cut(see)?;
    let enroll = see.cluster.cinch(&["enroll", "shop", "--restart"])?;
    terminal::show(&format!("$ kubectl cinch enroll shop --restart\n{}", enroll.text().trim_end()));
    ensure!(enroll.ok(), "kubectl cinch enroll shop --restart failed: {}", enroll.text());
    ensure!(!enroll.text().contains("NetworkPolicy"), "the NetworkPolicy is gone: {}", enroll.text());
    for (kind, name) in [("deployment", "api"), ("deployment", "web"), ("statefulset", "db")] {
        see.meshed("shop", kind, name)?;
    }
    let meshed =
        see.posture_until("shop", "the Posture of shop to say that all is meshed", PODS, |status| {
            let meshed = text(status, "/meshed");
            let (some, all) = meshed.split_once('/')?;
            (some == all && some != "0").then_some(meshed.clone())
        })?;
    see.shown(&["get", "postures", "-A"])?;
    let web = story.web_goes_on(40)?;
    Ok(format!("{named}\nMESHED {meshed}; {web}"))
}

/// A NetworkPolicy that would keep proxies from the operator is named before anything is changed: where workloads run,
/// and where none does yet.
fn what_would_cut(see: &See<'_>) -> Result<String> {
    let empty = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": EMPTY}});
    see.apply(&empty.to_string())?;
    let mut named = Vec::new();
    for (namespace, whom) in
        [("shop", "Deployment/api, Deployment/web, StatefulSet/db"), (EMPTY, "all later pods")]
    {
        see.apply(&only_dns(namespace).to_string())?;
        let enroll = see.cluster.cinch(&["enroll", namespace, "--restart", "--dry-run"])?;
        see.kubectl(&["delete", "networkpolicy", ONLY_DNS, "-n", namespace])?;
        let words = format!("NetworkPolicy {ONLY_DNS} cuts the sidecars of {whom} from the operator");
        let said = enroll.text().lines().find(|line| line.contains(&words)).map(str::to_owned);
        let Some(said) = said.filter(|_| enroll.ok()) else {
            bail!("kubectl cinch enroll {namespace} does not say {words:?}: {}", enroll.text());
        };
        named.push(format!("{namespace}: {}", said.trim()));
    }
    see.kubectl(&["delete", "namespace", EMPTY, "--wait=false"])?;
    terminal::show(&named.join("\n"));
    Ok(named.join("\n"))
}

/// Lets pods ask for names and nothing else.
fn only_dns(namespace: &str) -> Value {
    let egress = json!([{"ports": [{"port": 53, "protocol": "UDP"}]}]);
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": ONLY_DNS, "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": egress}})
}

/// Where init containers set the redirect, they need a capability that Pod Security `restricted` refuses.
fn shop(story: &Story<'_>) -> String {
    let shop = SHOP.replace("COUNTERS", &story.counters.display().to_string());
    match story.redirect {
        Redirect::Agent => shop,
        Redirect::Init => shop.replace(&format!(", labels: {{{}}}", RESTRICTED.replace('=', ": ")), ""),
    }
}

/// Each kind of workload has the sidecar in front, no capability, and the account of design's rule.
pub fn inject(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    let unmeshed = job_seconds(story, "legacy")?;
    see.apply(&BATCH.replace("NAMESPACE", "shop"))?;
    let meshed = wait_for_job(story, "shop", "once")?;
    see.kubectl(&["create", "job", "-n", "shop", "--from=cronjob/nightly", "nightly-by-hand"])?;
    wait_for_job(story, "shop", "nightly-by-hand")?;
    see.kubectl(&["wait", "-n", "shop", "pod/lone", "--for=condition=Ready", "--timeout=180s"])?;
    let mut seen = Vec::new();
    for (selector, account) in [
        ("app=api", "api"),
        ("app=web", "web"),
        ("app=db", "db-statefulset"),
        ("batch.kubernetes.io/job-name=once", "once-job"),
        ("batch.kubernetes.io/job-name=nightly-by-hand", "nightly-cronjob"),
        ("app=lone", "default"),
    ] {
        let pods = see.pods("shop", selector)?;
        ensure!(!pods.is_empty(), "no pod in shop has {selector}");
        for pod in &pods {
            let found = shape::pod(pod, story.redirect)?;
            ensure!(found == account, "{} runs as {found}, not {account}", text(pod, "/metadata/name"));
        }
        seen.push(format!("{selector}: {} pod(s), account {account}", pods.len()));
    }
    if story.redirect == Redirect::Agent {
        seen.push(shape::node_agent(see)?);
    }
    terminal::show(&seen.join("\n"));
    let probes = probes_answered(story)?;
    let words = format!(
        "a Job was complete {} s after its app's end ({} s in all), without sidecar {} s ({} s)",
        meshed.ending.as_secs(),
        meshed.whole.as_secs(),
        unmeshed.ending.as_secs(),
        unmeshed.whole.as_secs()
    );
    ensure!(meshed.ending <= unmeshed.ending + JOB_SLACK.max(unmeshed.ending), "{words}");
    let shape = match story.redirect {
        Redirect::Agent => "6 kinds in a restricted namespace, the sidecar first and no capability",
        Redirect::Init => "6 kinds, cinch-init and the sidecar first and no capability besides cinch-init's",
    };
    Ok(format!("{shape}; {probes}; {words}"))
}

/// api's containers are ready through probes of all kinds, and none has restarted.
fn probes_answered(story: &Story<'_>) -> Result<String> {
    let mut rewritten = 0;
    for pod in story.see.pods("shop", "app=api")? {
        for container in pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten() {
            for kind in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let port = container.pointer(&format!("/{kind}/httpGet/port")).and_then(Value::as_u64);
                ensure!(port == Some(15021), "{kind} of {container} does not go to the proxy");
                rewritten += 1;
            }
        }
        for status in pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten()
        {
            let (ready, restarts) = (status.get("ready"), status.get("restartCount").and_then(Value::as_u64));
            ensure!(ready == Some(&Value::Bool(true)) && restarts == Some(0), "not ready at once: {status}");
        }
    }
    Ok(format!("{rewritten} probes of api answered"))
}

fn job_seconds(story: &Story<'_>, namespace: &str) -> Result<JobTimes> {
    story.see.apply(&BATCH.replace("NAMESPACE", namespace))?;
    let took = wait_for_job(story, namespace, "once")?;
    story.see.kubectl(&["delete", "pod/lone", "cronjob/nightly", "-n", namespace, "--wait=false"])?;
    Ok(took)
}

/// Waits until the API calls the Job complete.
fn wait_for_job(story: &Story<'_>, namespace: &str, name: &str) -> Result<JobTimes> {
    let begun = Instant::now();
    wait::until(&format!("job {namespace}/{name}"), PODS, || {
        let job = story.see.json(&["job", name, "-n", namespace])?;
        if crate::see::number(&job, "/status/failed") > 0 {
            let logs = story.see.attempt(&[
                "logs",
                "-n",
                namespace,
                &format!("job/{name}"),
                "-c",
                "app",
                "--tail=5",
            ])?;
            return Ok(Seen::Not(format!("failed pods; {}", logs.text())));
        }
        let finished = app_finished(story, namespace, name)?;
        let [start, end, app] =
            [text(&job, "/status/startTime"), text(&job, "/status/completionTime"), finished]
                .map(|time| time.parse::<jiff::Timestamp>());
        let (Ok(start), Ok(end), Ok(app)) = (start, end, app) else {
            return Ok(Seen::Not(format!("not complete after {} s", begun.elapsed().as_secs())));
        };
        let between = |from, to: jiff::Timestamp| {
            Duration::from_secs(to.duration_since(from).as_secs().max(0).unsigned_abs())
        };
        Ok(Seen::Done(JobTimes { whole: between(start, end), ending: between(app, end) }))
    })
}

/// When the app of a Job's pod ended; empty while it runs.
fn app_finished(story: &Story<'_>, namespace: &str, job: &str) -> Result<String> {
    let pods = story.see.pods(namespace, &format!("batch.kubernetes.io/job-name={job}"))?;
    let statuses =
        pods.iter().filter_map(|pod| pod.pointer("/status/containerStatuses")?.as_array()).flatten();
    let mut finished = statuses.map(|status| text(status, "/state/terminated/finishedAt"));
    Ok(finished.rfind(|time| !time.is_empty()).unwrap_or_default())
}

/// Each proxy's certificate holds exactly one URI, the one of its account: asked over TLS, as a peer would.
pub fn identity(story: &mut Story<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for (selector, port, account) in [
        ("app=api", 8080, "api"),
        ("app=web", 8080, "web"),
        ("app=db", 5432, "db-statefulset"),
        ("app=lone", 8080, "default"),
    ] {
        for address in story.see.addresses("shop", selector)? {
            let wanted = format!("spiffe://cluster.local/ns/shop/sa/{account}");
            let uris = certificate_uris(story, &format!("{address}:{port}"))?;
            ensure!(uris == [wanted.clone()], "{address}:{port} shows {uris:?}, not {wanted}");
            seen.push(format!("{address}:{port} {wanted}"));
        }
    }
    terminal::show(&seen.join("\n"));
    Ok(format!("{} certificates, one URI each", seen.len()))
}

/// What `openssl s_client` sees of the proxy behind an address.
fn certificate_uris(story: &Story<'_>, address: &str) -> Result<Vec<String>> {
    let script = format!(
        "echo | openssl s_client -connect {address} -alpn cinch/1 -tls1_3 2>/dev/null \
         | openssl x509 -noout -ext subjectAltName"
    );
    let output = story.see.cluster.run_in_netns(&["sh", "-c", &script])?;
    if !output.ok() {
        bail!("openssl s_client {address}: {}", output.text());
    }
    let names = output.stdout.lines().skip(1).flat_map(|line| line.split(", "));
    Ok(names.filter_map(|name| name.trim().strip_prefix("URI:")).map(str::to_owned).collect())
}
