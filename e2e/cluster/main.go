// Command cluster holds every Kubernetes program of the test cluster in one binary, so that the shared
// packages are compiled and linked once. It runs the program named by its first argument, or by the name
// under which it was called (for kubectl, through a symbolic link).
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var programs = map[string]func() int{
	"etcd":                    runEtcd,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllers.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kube-proxy":              func() int { return cli.Run(proxy.NewProxyCommand()) },
	"kubelet":                 func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) },
	"kubectl":                 func() int { return cli.Run(cmd.NewDefaultKubectlCommand()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := programs[name]; !known && len(os.Args) > 1 {
		name, os.Args = os.Args[1], os.Args[1:]
	}
	run, known := programs[name]
	if !known {
		fmt.Fprintf(os.Stderr, "cluster: unknown program %q\n", name)
		os.Exit(2)
	}
	os.Exit(run())
}

// runEtcd serves one disposable member: etcd DIR CLIENT_URL PEER_URL. The data does not survive the test,
// so fsync, which would dominate on a small machine, is off.
func runEtcd() int {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: etcd DIR CLIENT_URL PEER_URL")
		return 2
	}
	config := embed.NewConfig()
	config.Dir = os.Args[1]
	config.UnsafeNoFsync = true
	config.LogLevel = "error"
	client, err := url.Parse(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "client URL:", err)
		return 2
	}
	peer, err := url.Parse(os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer URL:", err)
		return 2
	}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "etcd:", <-server.Err())
	return 1
}
