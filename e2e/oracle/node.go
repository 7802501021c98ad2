package main

import (
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/config"
)

// start says what a kubelet knows when it starts.
type start struct {
	Directory string `json:"directory"`
	// NumaNodes is how many the machine has.
	NumaNodes int `json:"numaNodes"`
	// Policy is the topology manager's.
	Policy string `json:"policy"`
	// Running are the pods whose containers the runtime reports to run. They are active from the
	// start, and admitted again by the test, as the kubelet does.
	Running []pod `json:"running"`
	// Ready says whether the API server has answered; "ready" says so later.
	Ready bool `json:"ready"`
}

// node is one kubelet's managers and the pods it knows.
type node struct {
	manager  *devicemanager.ManagerImpl
	topology topologymanager.Manager
	ready    atomic.Bool
	// admission: the kubelet admits one pod after the other.
	admission sync.Mutex
	mutex     sync.Mutex
	pods      map[string]*v1.Pod
}

func (n *node) start(asked start) error {
	n.pods = map[string]*v1.Pod{}
	containers := containermap.NewContainerMap()
	running := sets.New[string]()
	for _, pod := range asked.Running {
		n.pods[pod.Name] = pod.object()
		for _, container := range pod.Containers {
			id := pod.Name + "/" + container.Name
			containers.Add(pod.Name, container.Name, id)
			running.Insert(id)
		}
	}
	policy := asked.Policy
	if policy == "" {
		policy = topologymanager.PolicyNone
	}
	nodes := make([]machineNode, asked.NumaNodes)
	for id := range nodes {
		nodes[id].Id = id
	}
	topology, err := newTopologyManager(nodes, policy)
	if err != nil {
		return err
	}
	manager, err := newManager(socket(asked.Directory), nodes, topology)
	if err != nil {
		return err
	}
	addHintProvider(topology, manager)
	n.ready.Store(asked.Ready)
	sources := config.NewSourcesReady(func(sets.Set[string]) bool { return n.ready.Load() })
	if err := startManager(manager, n.active, sources, containers, running); err != nil {
		return err
	}
	n.topology, n.manager = topology, manager
	return nil
}

func (n *node) active() []*v1.Pod {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	pods := make([]*v1.Pod, 0, len(n.pods))
	for _, pod := range n.pods {
		pods = append(pods, pod)
	}
	return pods
}

func (n *node) admit(asked pod) error {
	n.admission.Lock()
	defer n.admission.Unlock()
	object := asked.object()
	n.mutex.Lock()
	n.pods[asked.Name] = object
	n.mutex.Unlock()
	result := admit(n.topology, object)
	if result.Admit {
		return nil
	}
	// A rejected pod has failed, and is active no more.
	n.end(asked.Name)
	return fmt.Errorf("%s: %s", result.Reason, result.Message)
}

func (n *node) end(name string) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	delete(n.pods, name)
}

func (n *node) known(name string) (*v1.Pod, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if pod, ok := n.pods[name]; ok {
		return pod, nil
	}
	return nil, fmt.Errorf("no pod %q is active", name)
}

// settings is what the runtime is told of a container's devices.
type settings struct {
	Envs map[string]string `json:"envs"`
	// Mounts and Devices are the paths on the host by those in the container.
	Mounts      map[string]string `json:"mounts"`
	Devices     map[string]string `json:"devices"`
	Annotations map[string]string `json:"annotations"`
	CDI         []string          `json:"cdi"`
}

func (n *node) run(name, container string) (*settings, error) {
	pod, err := n.known(name)
	if err != nil {
		return nil, err
	}
	object, err := found(pod, container)
	if err != nil {
		return nil, err
	}
	options, err := runOptions(n.manager, pod, object)
	if err != nil {
		return nil, err
	}
	said := &settings{
		Envs:        map[string]string{},
		Mounts:      map[string]string{},
		Devices:     map[string]string{},
		Annotations: map[string]string{},
	}
	if options == nil {
		return said, nil
	}
	for _, env := range options.Envs {
		said.Envs[env.Name] = env.Value
	}
	for _, mount := range options.Mounts {
		said.Mounts[mount.ContainerPath] = mount.HostPath
	}
	for _, device := range options.Devices {
		said.Devices[device.PathInContainer] = device.PathOnHost
	}
	for _, annotation := range options.Annotations {
		said.Annotations[annotation.Name] = annotation.Value
	}
	for _, device := range options.CDIDevices {
		said.CDI = append(said.CDI, device.Name)
	}
	return said, nil
}

// counts are numbers of devices by resource.
type counts struct {
	Capacity    map[string]int64 `json:"capacity"`
	Allocatable map[string]int64 `json:"allocatable"`
	// Removed are the resources that the kubelet gave up with this answer.
	Removed []string `json:"removed"`
}

func (n *node) capacity() counts {
	all, healthy, removed := capacity(n.manager)
	return counts{Capacity: numbers(all), Allocatable: numbers(healthy), Removed: removed}
}

func numbers(list v1.ResourceList) map[string]int64 {
	numbers := map[string]int64{}
	for name, quantity := range list {
		numbers[string(name)] = quantity.Value()
	}
	return numbers
}

// instances are the ids by resource.
func instances(devices devicemanager.ResourceDeviceInstances) map[string][]string {
	ids := map[string][]string{}
	for resource, instances := range devices {
		ids[resource] = sets.List(sets.KeySet(instances))
	}
	return ids
}

// health is what the pod's status says of a container's devices.
func (n *node) health(name, container string) (map[string]string, error) {
	pod, err := n.known(name)
	if err != nil {
		return nil, err
	}
	status := &v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{Name: container}}}
	updateStatus(n.manager, pod, status)
	health := map[string]string{}
	for _, resource := range status.ContainerStatuses[0].AllocatedResourcesStatus {
		for _, device := range resource.Resources {
			health[string(device.ResourceID)] = string(device.Health)
		}
	}
	return health, nil
}

// age lets the time pass since the plugin of a resource was lost: nobody waits five minutes.
func (n *node) age(resource string, seconds int64) error {
	manager := reflect.ValueOf(n.manager).Elem()
	mutex := (*sync.Mutex)(unsafe.Pointer(manager.FieldByName("mutex").UnsafeAddr()))
	mutex.Lock()
	defer mutex.Unlock()
	endpoint := manager.FieldByName("endpoints").MapIndex(reflect.ValueOf(resource))
	if !endpoint.IsValid() {
		return fmt.Errorf("no plugin of %q is known", resource)
	}
	ago := time.Now().Add(-time.Duration(seconds) * time.Second)
	setStopTime(endpoint.FieldByName("e").Elem().UnsafePointer(), ago)
	return nil
}

// The manager takes its directory only from tests of its own package, and the time from its clock.

//go:linkname setStopTime k8s.io/kubernetes/pkg/kubelet/cm/devicemanager.(*endpointImpl).setStopTime
func setStopTime(endpoint unsafe.Pointer, time time.Time)
