// Command device-manager runs the kubelet's own device manager and topology manager, without the
// kubelet around them: it reads one command per line of JSON on standard input and answers each with
// a line on standard output. It ends with its input. A kubelet that restarts is another process over
// the same directory.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// command is one line of input. Which members count depends on Do.
type command struct {
	ID  uint64 `json:"id"`
	Do  string `json:"do"`
	Pod pod    `json:"pod"`
	// Container names one of the pod.
	Container string `json:"container"`
	Resource  string `json:"resource"`
	Seconds   int64  `json:"seconds"`
	Start     start  `json:"start"`
}

// answer is one line of output; commands are answered in the order in which they end.
type answer struct {
	ID    uint64 `json:"id"`
	Error string `json:"error,omitempty"`
	Value any    `json:"value,omitempty"`
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	// A line holds a pod or the name of a resource, and names may be long on purpose.
	input.Buffer(nil, 1<<20)
	output := json.NewEncoder(os.Stdout)
	var printing sync.Mutex
	node := &node{}
	for input.Scan() {
		var asked command
		if err := json.Unmarshal(input.Bytes(), &asked); err != nil {
			fmt.Fprintf(os.Stderr, "malformed command %q: %v\n", input.Text(), err)
			os.Exit(2)
		}
		// The kubelet does these from goroutines of its own, too.
		go func() {
			said := answer{ID: asked.ID}
			value, err := node.obey(asked)
			if err != nil {
				said.Error = err.Error()
			} else {
				said.Value = value
			}
			printing.Lock()
			defer printing.Unlock()
			if err := output.Encode(said); err != nil {
				os.Exit(1)
			}
		}()
	}
}

func (n *node) obey(asked command) (any, error) {
	if asked.Do == "start" {
		return nil, n.start(asked.Start)
	}
	if n.manager == nil {
		return nil, fmt.Errorf("%q before \"start\"", asked.Do)
	}
	switch asked.Do {
	case "ready":
		n.ready.Store(true)
		return nil, nil
	case "admit":
		return nil, n.admit(asked.Pod)
	case "end":
		n.end(asked.Pod.Name)
		return nil, nil
	case "run":
		return n.run(asked.Pod.Name, asked.Container)
	case "capacity":
		return n.capacity(), nil
	case "allocatable":
		return instances(allocatable(n.manager)), nil
	case "devices":
		return instances(n.manager.GetDevices(asked.Pod.Name, asked.Container)), nil
	case "health":
		return n.health(asked.Pod.Name, asked.Container)
	case "age":
		return nil, n.age(asked.Resource, asked.Seconds)
	default:
		return nil, fmt.Errorf("no command %q", asked.Do)
	}
}

// socket is where the manager listens below directory.
func socket(directory string) string {
	return filepath.Join(directory, "kubelet.sock")
}
