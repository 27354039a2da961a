package main

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/p2c"
)

// backend is a server with some workers and one queue; `failing` of its calls it refuses.
type backend struct {
	Mean    float64 `json:"mean"` // seconds to serve a request
	Slots   int     `json:"slots"`
	Failing float64 `json:"failing"`
}

// ending is a call that will end.
type ending struct {
	at    float64 // seconds since the day began
	order int     // of equal times who was planned first comes first
	call  int
}

type endings []ending

func (e endings) Len() int { return len(e) }
func (e endings) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e endings) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *endings) Push(x any)   { *e = append(*e, x.(ending)) }
func (e *endings) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// simulate plays a day with Kratos' own p2c. Its code reads the time with time.Now: so it runs
// in a bubble of testing/synctest, where time stands still but while the one goroutine sleeps.
// Such a bubble wants a test, and testing.Main ends its process: so that is another one.
func simulate(line []byte, t task) (answer map[string]any, err error) {
	if t.algorithm != "p2c" {
		return nil, fmt.Errorf("%s knows no loads", t.algorithm)
	}
	another := exec.Command(os.Args[0], simulation)
	another.Stdin, another.Stderr = bytes.NewReader(line), os.Stderr
	output, err := another.Output()
	if err != nil {
		return nil, err
	}
	return answer, json.NewDecoder(bytes.NewReader(output)).Decode(&answer)
}

// simulation is the argument that makes this program the other one.
const simulation = "simulate"

// mainOfSimulation answers the one request on the standard input, and ends the process.
func mainOfSimulation() {
	day := testing.InternalTest{Name: "day", F: func(t *testing.T) {
		var q request
		if err := json.NewDecoder(os.Stdin).Decode(&q); err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		synctest.Test(t, func(*testing.T) { answer = play(q) })
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			t.Fatal(err)
		}
	}}
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{day}, nil, nil)
}

func play(q request) map[string]any {
	ctx, n := context.Background(), len(q.Gaps)
	chosen, latency, failed := make([]int, n), make([]float64, n), make([]int, n)
	came, dones := make([]float64, n), make([]selector.DoneFunc, n)
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

	weights, index := make([]int, len(q.Backends)), map[string]int{}
	free := make([][]float64, len(q.Backends)) // when each worker will be free
	for i, backend := range q.Backends {
		weights[i], index[address(i)] = 10, i
		free[i] = make([]float64, backend.Slots)
	}
	balancer := p2c.New()
	balancer.Apply(nodes(weights))

	began := time.Now()
	until := func(at float64) { // sleep until that time of the day
		time.Sleep(time.Duration(at*1e9) - time.Since(began))
	}
	var coming endings
	end := func() {
		done := heap.Pop(&coming).(ending)
		until(done.at)
		k := done.call
		latency[k] = done.at - came[k]
		var told selector.DoneInfo
		if failed[k] == 1 {
			told.Err = refused
		}
		dones[k](ctx, told)
		dones[k] = nil
	}
	now := 0.0
	for k := range n {
		now += q.Gaps[k]
		for len(coming) > 0 && coming[0].at <= now {
			end()
		}
		until(now)
		node, done, err := balancer.Select(ctx)
		if err != nil {
			panic(err)
		}
		i := index[node.Address()]
		chosen[k], came[k], dones[k] = i, now, done
		ends := now + q.Refusal
		if q.Luck[k] < q.Backends[i].Failing {
			failed[k] = 1
		} else {
			workers, first := free[i], 0
			for w := range workers {
				if workers[w] < workers[first] {
					first = w
				}
			}
			ends = max(workers[first], now) + q.Backends[i].Mean*q.Work[k]
			workers[first] = ends
		}
		heap.Push(&coming, ending{ends, k, k})
	}
	for len(coming) > 0 {
		end()
	}
	return map[string]any{"chosen": chosen, "latency": latency, "failed": failed}
}
