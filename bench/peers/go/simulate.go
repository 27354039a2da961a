package main

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kratos/kratos/v2/selector"
)

// backend is a server with one queue and some workers.
type backend struct {
	Mean    float64 `json:"mean"` // seconds to serve a request of work 1
	Slots   int     `json:"slots"`
	Failing float64 `json:"failing"` // how many of its calls it refuses
}

// day is what happens: request k comes Gaps[k] seconds after the one before.
type day struct {
	Backends []backend `json:"backends"`
	Gaps     []float64 `json:"gaps"`
	Work     []float64 `json:"work"`
	Luck     []float64 `json:"luck"`
	Refusal  float64   `json:"refusal"` // seconds until a caller knows that it was refused
}

// outcome is what became of each request.
type outcome struct {
	Chosen  []int     `json:"chosen"`
	Latency []float64 `json:"latency"`
	Failed  []int     `json:"failed"`
}

// event is a request that comes, or the end of one.
type event struct {
	at      float64
	order   int // of equal times the event that was planned first comes first
	request int
	isEnd   bool
}

// events are a heap, the next event on top.
type events []event

func (e events) Len() int { return len(e) }

func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}

func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }

func (e *events) Push(planned any) { *e = append(*e, planned.(event)) }

func (e *events) Pop() any {
	last := len(*e) - 1
	next := (*e)[last]
	*e = (*e)[:last]
	return next
}

func (d *day) check() error {
	n := len(d.Gaps)
	if len(d.Backends) == 0 || n == 0 || len(d.Work) != n || len(d.Luck) != n {
		return errors.New("want backends, and gaps, work and luck of each request")
	}
	for i, b := range d.Backends {
		if b.Slots < 1 || !(b.Mean >= 0) {
			return fmt.Errorf("backend %d: want slots of 1 or more, a mean of 0 or more", i)
		}
	}
	if !(slices.Min(d.Gaps) >= 0 && slices.Min(d.Work) >= 0 && d.Refusal >= 0) {
		return errors.New("want gaps, work and a refusal of 0 or more")
	}
	return nil
}

// simulate plays the day with Kratos' own code. All of it runs in a bubble of testing/synctest,
// where time.Now, which Kratos asks, stands still until all sleep, and then jumps. There is no
// other public way into a bubble than through a test, so one is made up. Kratos seeds its random
// numbers by the time: in a bubble that begins in the same moment every time, the same day ends
// the same way.
func (k *kratos) simulate(d day) (played outcome, err error) {
	if !k.loadAware {
		return outcome{}, errors.New("that algorithm is not load-aware")
	}
	if err := d.check(); err != nil {
		return outcome{}, err
	}
	synctest.Test(&testing.T{}, func(*testing.T) {
		defer func() { // a panic here would be the end of the process
			if caught := recover(); caught != nil {
				err = fmt.Errorf("%v", caught)
			}
		}()
		played = d.play(k.builder)
	})
	return played, err
}

// play is to be called in a bubble.
//
// Times are kept in seconds, as the other peers have them; the clock that Kratos sees is at the
// nearest nanosecond.
func (d *day) play(builder selector.Builder) outcome {
	ctx, begin := context.Background(), time.Now()
	list := nodes(slices.Repeat([]int{1}, len(d.Backends)))
	policy := builder.Build()
	policy.Apply(list)
	index := make(map[selector.Node]int, len(list))
	freeAt := make([][]float64, len(list)) // of each backend: when each worker will be free
	for i, node := range list {
		index[node] = i
		freeAt[i] = make([]float64, d.Backends[i].Slots)
	}
	refused := selector.DoneInfo{Err: &net.OpError{
		Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
	}}

	n := len(d.Gaps)
	result := outcome{make([]int, n), make([]float64, n), make([]int, n)}
	sent, done := make([]float64, n), make([]selector.DoneFunc, n)
	planned := 0 // events so far
	var queue events
	plan := func(at float64, request int, isEnd bool) {
		heap.Push(&queue, event{at, planned, request, isEnd})
		planned++
	}
	plan(d.Gaps[0], 0, false)
	for len(queue) > 0 {
		now := heap.Pop(&queue).(event)
		time.Sleep(time.Duration(math.Round(now.at*1e9)) - time.Since(begin))
		k := now.request
		if now.isEnd {
			result.Latency[k] = now.at - sent[k]
			if result.Failed[k] == 1 {
				done[k](ctx, refused)
			} else {
				done[k](ctx, selector.DoneInfo{})
			}
			done[k] = nil
			continue
		}
		sent[k] = now.at
		node, report, err := policy.Select(ctx)
		if err != nil {
			panic(err)
		}
		i := index[node]
		result.Chosen[k], done[k] = i, report
		if d.Luck[k] < d.Backends[i].Failing {
			result.Failed[k] = 1
			plan(now.at+d.Refusal, k, true)
		} else {
			// The first worker that is free serves it, in the order of arrival: no queue is kept.
			worker := first(freeAt[i])
			*worker = max(*worker, now.at) + d.Backends[i].Mean*d.Work[k]
			plan(*worker, k, true)
		}
		if k+1 < n {
			plan(now.at+d.Gaps[k+1], k+1, false)
		}
	}
	return result
}

// first returns the place of the least time.
func first(times []float64) *float64 {
	least := 0
	for i, at := range times {
		if at < times[least] {
			least = i
		}
	}
	return &times[least]
}
