//go:build kubelet_1_37

package main

import (
	"context"
	_ "unsafe"

	cadvisor "github.com/google/cadvisor/lib/model"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// machineNode is one NUMA node.
type machineNode = cadvisor.Node

//go:linkname newManagerImpl k8s.io/kubernetes/pkg/kubelet/cm/devicemanager.newManagerImpl
func newManagerImpl(klog.Logger, string, []machineNode, topologymanager.Store) (*devicemanager.ManagerImpl, error)

func newManager(socket string, nodes []machineNode, store topologymanager.Store) (*devicemanager.ManagerImpl, error) {
	return newManagerImpl(klog.Background(), socket, nodes, store)
}

func newTopologyManager(nodes []machineNode, policy string) (topologymanager.Manager, error) {
	return topologymanager.NewManager(klog.Background(), nodes, policy, "container", nil)
}

func addHintProvider(topology topologymanager.Manager, manager *devicemanager.ManagerImpl) {
	topology.AddHintProvider(klog.Background(), manager)
}

func startManager(manager *devicemanager.ManagerImpl, active devicemanager.ActivePodsFunc, ready config.SourcesReady, containers containermap.ContainerMap, running sets.Set[string]) error {
	return manager.Start(klog.Background(), active, ready, containers, running)
}

func admit(topology topologymanager.Manager, pod *v1.Pod) lifecycle.PodAdmitResult {
	return topology.Admit(context.Background(), &lifecycle.PodAdmitAttributes{Pod: pod, Operation: lifecycle.AddOperation})
}

func runOptions(manager *devicemanager.ManagerImpl, pod *v1.Pod, container *v1.Container) (*devicemanager.DeviceRunContainerOptions, error) {
	return manager.GetDeviceRunContainerOptions(context.Background(), pod, container)
}

func capacity(manager *devicemanager.ManagerImpl) (v1.ResourceList, v1.ResourceList, []string) {
	return manager.GetCapacity(klog.Background())
}

func allocatable(manager *devicemanager.ManagerImpl) devicemanager.ResourceDeviceInstances {
	return manager.GetAllocatableDevices(klog.Background())
}

func updateStatus(manager *devicemanager.ManagerImpl, pod *v1.Pod, status *v1.PodStatus) {
	manager.UpdateAllocatedResourcesStatus(klog.Background(), pod, status)
}
