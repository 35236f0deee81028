//! The driver as a kubelet meets it: gRPC over Unix sockets, against trees like a kubelet's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod kubelet;

use cinch_node::csi::registration::registration_client::RegistrationClient;
use cinch_node::csi::registration::{InfoRequest, RegistrationStatus};
use cinch_node::csi::v1;
use cinch_node::csi::v1::identity_client::IdentityClient;
use cinch_node::csi::v1::node_client::NodeClient;
use cinch_node::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ProbeRequest,
};
use kubelet::{Kubelet, POD, Running, publication, reason_at};
use std::fs;
use tonic::Code;

const DRIVER: &str = "node.cinch.dev";

#[tokio::test]
async fn a_kubelet_learns_the_driver_and_its_services() {
    let kubelet = Kubelet::new();
    let mut running = Running::start(&kubelet).await;
    let mut registration = RegistrationClient::new(kubelet.registration().await);
    let info = registration.get_info(InfoRequest {}).await.unwrap().into_inner();
    let endpoint = kubelet.paths().driver.join("csi.sock").display().to_string();
    assert_eq!((info.r#type.as_str(), info.name.as_str(), info.endpoint), ("CSIPlugin", DRIVER, endpoint));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    assert_eq!(*running.registered.borrow(), None);
    for (plugin_registered, error, want) in
        [(false, "no", Some(Err("no".to_owned()))), (true, "", Some(Ok(())))]
    {
        let status = RegistrationStatus { plugin_registered, error: error.into() };
        registration.notify_registration_status(status).await.unwrap();
        assert_eq!(*running.registered.borrow_and_update(), want);
    }

    let mut identity = IdentityClient::new(kubelet.csi().await);
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, DRIVER);
    identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    let ready = identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(v1::BoolValue { value: true }));
    let mut node = NodeClient::new(kubelet.csi().await);
    node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
    let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "node-1");
}

#[tokio::test]
async fn a_volume_is_a_directory_with_a_socket_until_it_is_unpublished() {
    let kubelet = Kubelet::new();
    let running = Running::start(&kubelet).await;
    kubelet.publish(POD).await.unwrap();
    let target = kubelet.target(POD);
    let socket = target.join("agent.sock");
    assert!(socket.as_os_str().len() > 107, "longer than the address of a socket can be");
    // Whoever runs this test is not the sidecar's user.
    assert_eq!(reason_at(&target).await.unwrap(), "NotTheSidecar");
    kubelet.publish(POD).await.unwrap();
    assert_eq!(reason_at(&target).await.unwrap(), "NotTheSidecar", "published twice");
    assert_eq!(running.pods.count(), 1);
    kubelet.unpublish(POD).await.unwrap();
    assert!(!target.exists() && target.with_file_name("vol_data.json").exists());
    assert_eq!(running.pods.count(), 0);
    kubelet.unpublish(POD).await.unwrap();
}

#[tokio::test]
async fn what_is_not_a_pods_own_volume_is_refused() {
    let kubelet = Kubelet::new();
    let _running = Running::start(&kubelet).await;
    let target = kubelet.prepare(POD);
    let mut node = NodeClient::new(kubelet.csi().await);
    let good = publication(&target, POD);
    let outside = kubelet.root.path().join("outside");
    let without = |key: &str| {
        let mut context = good.volume_context.clone();
        context.remove(key);
        NodePublishVolumeRequest { volume_context: context, ..good.clone() }
    };
    for (case, request) in [
        ("another pod", publication(&target, "another")),
        ("no pod", without("csi.storage.k8s.io/pod.uid")),
        ("persistent", without("csi.storage.k8s.io/ephemeral")),
        ("not readOnly", NodePublishVolumeRequest { readonly: false, ..good.clone() }),
        ("elsewhere", publication(&outside, POD)),
        ("back out", publication(&target.join("../../../../.."), POD)),
        ("nothing", NodePublishVolumeRequest::default()),
    ] {
        let status = node.node_publish_volume(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{case}: {status}");
    }
    assert!(!outside.exists() && !target.exists());
    let away = NodeUnpublishVolumeRequest {
        volume_id: "x".into(),
        target_path: kubelet.root.path().join("pods").display().to_string(),
    };
    assert_eq!(node.node_unpublish_volume(away).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(kubelet.root.path().join("pods").exists());
}

#[tokio::test]
async fn running_pods_are_served_again_after_a_restart() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    for pod in [POD, "pod-2", "pod-3"] {
        kubelet.publish(pod).await.unwrap();
    }
    first.kill();
    // Pods that end while nobody is there are tidied up by the kubelet's next attempt.
    fs::remove_dir_all(kubelet.target("pod-3")).unwrap();
    let second = Running::start(&kubelet).await;
    assert_eq!(second.pods.count(), 2);
    assert_eq!(reason_at(&kubelet.target(POD)).await.unwrap(), "NotTheSidecar");
    kubelet.unpublish(POD).await.unwrap();
    kubelet.unpublish("pod-3").await.unwrap();
    assert!(!kubelet.target(POD).exists());
    assert_eq!(second.pods.count(), 1);
}

#[tokio::test]
async fn a_later_agent_takes_over_while_the_earlier_still_runs_and_keeps_all_when_it_ends() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    kubelet.publish(POD).await.unwrap();
    let earlier = kubelet.csi().await;
    let second = Running::start(&kubelet).await;
    assert_eq!(second.pods.count(), 1, "taken over");
    kubelet.publish("pod-2").await.unwrap();
    assert_eq!((first.pods.count(), second.pods.count()), (1, 2), "new pods go to the later");
    // What was on its way to the earlier is still done by it.
    IdentityClient::new(earlier).probe(ProbeRequest {}).await.unwrap();
    first.kill();
    for pod in [POD, "pod-2"] {
        assert_eq!(reason_at(&kubelet.target(pod)).await.unwrap(), "NotTheSidecar", "{pod}");
        kubelet.unpublish(pod).await.unwrap();
    }
    let mut registration = RegistrationClient::new(kubelet.registration().await);
    registration.get_info(InfoRequest {}).await.unwrap();
}
