package main

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is what a command says of one; its name is its UID.
type pod struct {
	Name       string      `json:"name"`
	Containers []container `json:"containers"`
}

// container is one of a pod; Kind is "init", "sidecar" or empty.
type container struct {
	Name      string           `json:"name"`
	Kind      string           `json:"kind"`
	Resources map[string]int64 `json:"resources"`
}

// object is the pod as the API server would give it.
func (p pod) object() *v1.Pod {
	object := &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name:      p.Name,
		Namespace: "default",
		UID:       types.UID(p.Name),
	}}
	for _, container := range p.Containers {
		object.Spec.InitContainers, object.Spec.Containers = container.appended(
			object.Spec.InitContainers, object.Spec.Containers)
	}
	return object
}

func (c container) appended(first, then []v1.Container) ([]v1.Container, []v1.Container) {
	object := v1.Container{Name: c.Name}
	object.Resources.Limits = v1.ResourceList{}
	for name, count := range c.Resources {
		object.Resources.Limits[v1.ResourceName(name)] = *resource.NewQuantity(count, resource.DecimalSI)
	}
	object.Resources.Requests = object.Resources.Limits
	switch c.Kind {
	case "sidecar":
		always := v1.ContainerRestartPolicyAlways
		object.RestartPolicy = &always
		return append(first, object), then
	case "init":
		return append(first, object), then
	default:
		return first, append(then, object)
	}
}

// found is the container of that name.
func found(pod *v1.Pod, name string) (*v1.Container, error) {
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for index := range containers {
			if containers[index].Name == name {
				return &containers[index], nil
			}
		}
	}
	return nil, fmt.Errorf("pod %q has no container %q", pod.Name, name)
}
