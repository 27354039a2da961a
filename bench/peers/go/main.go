// The peer of the Go originals: Kitex' load balancers and Kratos' selectors, as their authors
// publish them, behind the protocol of ../PROTOCOL.md.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	batch         = 1000
	mostForMemory = 100_000         // picks after which memory is looked at
	longestWalk   = 5 * time.Second // or this long
)

// request is one line of the input; which fields matter depends on Do.
type request struct {
	Do        string    `json:"do"`
	System    string    `json:"system"`
	Algorithm string    `json:"algorithm"`
	Weights   []int     `json:"weights"`
	Keys      []string  `json:"keys"`
	Operation string    `json:"operation"`
	Count     int       `json:"count"`
	Backends  []backend `json:"backends"`
	Gaps      []float64 `json:"gaps"`
	Work      []float64 `json:"work"`
	Luck      []float64 `json:"luck"`
	Refusal   float64   `json:"refusal"`
}

// task is what a picker is to be made of.
type task struct {
	algorithm string
	weights   []int
	keys      []string
	requests  []any // the keys, boxed beforehand: Next takes an interface
	index     map[string]int
}

// system is Kitex or Kratos, which has made a picker of a task.
type system interface {
	// operation returns what does an operation count times, and the same loop without it.
	operation(name string) (run, empty func(count int), err error)
	// fresh returns what picks by a fresh picker: the address, or "" for nobody.
	fresh() func(key any) string
	moved() (before, added []int, err error)
	// held makes a fresh picker, has it pick, and returns it.
	held(walk func(pick func(key any))) any
}

func newTask(q request) task {
	t := task{q.Algorithm, q.Weights, q.Keys, make([]any, len(q.Keys)), map[string]int{}}
	for i, key := range q.Keys {
		t.requests[i] = key
	}
	if len(t.requests) == 0 {
		t.requests = []any{""}
	}
	for i := range len(q.Weights) + 1 {
		t.index[address(i)] = i
	}
	return t
}

func address(i int) string {
	return fmt.Sprintf("10.%d.%d.%d:8888", i>>16&255, i>>8&255, i&255)
}

// changesMembers says whether an instance comes and goes, rather than that a weight changes.
func (t task) changesMembers() bool {
	switch t.algorithm {
	case "round_robin", "random", "consistent_hash", "p2c":
		return true
	}
	return false
}

// changed returns the weights once one instance has changed.
func (t task) changed() []int {
	weights := append([]int(nil), t.weights...)
	if t.changesMembers() {
		return append(weights, t.weights[0])
	}
	weights[len(weights)/2]++
	return weights
}

// period is the number of picks after which a schedule begins again.
func (t task) period() int {
	sum, divisor := 0, 0
	for _, weight := range t.weights {
		sum += weight
		for divisor, weight = weight, divisor; weight != 0; divisor, weight = weight, divisor%weight {
		}
	}
	if divisor == 0 {
		return 0
	}
	return sum / divisor
}

func (t task) indexOf(address string) int {
	if i, ok := t.index[address]; ok {
		return i
	}
	return -1
}

// What the loops leave behind: so nothing in them is without use.
var sink any

// peer answers requests, one after another.
type peer struct {
	task task
	made system
}

func (p *peer) answer(q request, line []byte) (map[string]any, error) {
	switch q.Do {
	case "describe":
		return describe()
	case "make":
		p.made = nil
		p.task = newTask(q)
		made, err := makeSystem(q.System, p.task)
		if err != nil {
			return nil, err
		}
		p.made = made
		return map[string]any{}, nil
	}
	if p.made == nil {
		return nil, fmt.Errorf("nothing has been made")
	}
	switch q.Do {
	case "time":
		run, empty, err := p.made.operation(q.Operation)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		run(q.Count)
		ns := time.Since(began).Nanoseconds()
		began = time.Now()
		empty(q.Count)
		return map[string]any{"ns": ns, "empty_ns": time.Since(began).Nanoseconds()}, nil
	case "picks":
		pick, picks := p.made.fresh(), make([]int, q.Count)
		for k := range picks {
			picks[k] = p.task.indexOf(pick(p.task.requests[k%len(p.task.requests)]))
		}
		return map[string]any{"picks": picks}, nil
	case "moved":
		before, added, err := p.made.moved()
		if err != nil {
			return nil, err
		}
		return map[string]any{"before": before, "added": added}, nil
	case "memory":
		return map[string]any{"bytes": p.memory()}, nil
	case "simulate":
		return simulate(line, p.task)
	}
	return nil, fmt.Errorf("there is no %s", q.Do)
}

func (p *peer) memory() int64 {
	before := live()
	held := p.made.held(func(pick func(key any)) {
		began := time.Now()
		for k := range min(p.task.period(), mostForMemory) {
			pick(p.task.requests[k%len(p.task.requests)])
			if k%1000 == 0 && time.Since(began) > longestWalk {
				break
			}
		}
	})
	after := live()
	runtime.KeepAlive(held)
	return after - before
}

// live returns the bytes that are left when all garbage has been collected.
func live() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

func makeSystem(name string, t task) (system, error) {
	switch name {
	case "kitex", "kitex alias":
		return newKitex(name, t)
	case "kratos":
		return newKratos(t)
	}
	return nil, fmt.Errorf("there is no %s", name)
}

func describe() (map[string]any, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil, fmt.Errorf("built without information on its modules")
	}
	systems := map[string]string{}
	for _, module := range info.Deps {
		switch module.Path {
		case "github.com/cloudwego/kitex":
			systems["kitex"] = module.Version
		case "github.com/go-kratos/kratos/v2":
			systems["kratos"] = module.Version
		}
	}
	runtime := fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return map[string]any{"systems": systems, "runtime": runtime}, nil
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == simulation {
		mainOfSimulation()
	}
	// What others print goes elsewhere than to who asks.
	out := os.Stdout
	os.Stdout = os.Stderr
	lines, answers := bufio.NewReaderSize(os.Stdin, 1<<20), json.NewEncoder(out)
	p := &peer{}
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var q request
		var answer map[string]any
		if err = json.Unmarshal(line, &q); err == nil {
			answer, err = p.answer(q, line)
		}
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(answer); err != nil {
			return
		}
	}
}
