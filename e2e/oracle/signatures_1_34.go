//go:build kubelet_1_34

package main

import (
	_ "unsafe"

	cadvisor "github.com/google/cadvisor/info/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// machineNode is one NUMA node.
type machineNode = cadvisor.Node

//go:linkname newManagerImpl k8s.io/kubernetes/pkg/kubelet/cm/devicemanager.newManagerImpl
func newManagerImpl(string, []machineNode, topologymanager.Store) (*devicemanager.ManagerImpl, error)

func newManager(socket string, nodes []machineNode, store topologymanager.Store) (*devicemanager.ManagerImpl, error) {
	return newManagerImpl(socket, nodes, store)
}

func newTopologyManager(nodes []machineNode, policy string) (topologymanager.Manager, error) {
	return topologymanager.NewManager(nodes, policy, "container", nil)
}

func addHintProvider(topology topologymanager.Manager, manager *devicemanager.ManagerImpl) {
	topology.AddHintProvider(manager)
}

func startManager(manager *devicemanager.ManagerImpl, active devicemanager.ActivePodsFunc, ready config.SourcesReady, containers containermap.ContainerMap, running sets.Set[string]) error {
	return manager.Start(active, ready, containers, running)
}

func admit(topology topologymanager.Manager, pod *v1.Pod) lifecycle.PodAdmitResult {
	return topology.Admit(&lifecycle.PodAdmitAttributes{Pod: pod})
}

func runOptions(manager *devicemanager.ManagerImpl, pod *v1.Pod, container *v1.Container) (*devicemanager.DeviceRunContainerOptions, error) {
	return manager.GetDeviceRunContainerOptions(pod, container)
}

func capacity(manager *devicemanager.ManagerImpl) (v1.ResourceList, v1.ResourceList, []string) {
	return manager.GetCapacity()
}

func allocatable(manager *devicemanager.ManagerImpl) devicemanager.ResourceDeviceInstances {
	return manager.GetAllocatableDevices()
}

func updateStatus(manager *devicemanager.ManagerImpl, pod *v1.Pod, status *v1.PodStatus) {
	manager.UpdateAllocatedResourcesStatus(pod, status)
}
