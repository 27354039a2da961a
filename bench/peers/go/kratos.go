package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/filter"
	"github.com/go-kratos/kratos/v2/selector/p2c"
	"github.com/go-kratos/kratos/v2/selector/random"
	"github.com/go-kratos/kratos/v2/selector/wrr"
)

// mostPicks is how many picks the protocol has at most before memory is measured.
const mostPicks = 100_000

// kratos is a selector of Kratos. It is called through Kratos' interfaces only.
type kratos struct {
	builder   selector.Builder
	loadAware bool
	comes     bool // the change: an instance comes and goes; else a weight grows and shrinks
	weights   []int

	nodes    []selector.Node
	selector selector.Selector
}

func newKratos(algorithm string, weights []int) (*kratos, error) {
	k := &kratos{weights: weights, nodes: nodes(weights)}
	switch algorithm {
	case "weighted_round_robin":
		k.builder = wrr.NewBuilder()
	case "random":
		k.builder, k.comes = random.NewBuilder(), true
	case "p2c":
		k.builder, k.comes, k.loadAware = p2c.NewBuilder(), true, true
	default:
		return nil, fmt.Errorf("kratos has no %s", algorithm)
	}
	k.selector = k.fresh(k.nodes)
	return k, nil
}

// newNode returns a node as of a registry; every second one is of version 1.
func newNode(i, weight int) selector.Node {
	return selector.NewNode("http", host(i), &registry.ServiceInstance{
		ID:        strconv.Itoa(i),
		Name:      "benchmark",
		Version:   strconv.Itoa(i % 2),
		Metadata:  map[string]string{"weight": strconv.Itoa(weight)},
		Endpoints: []string{"http://" + host(i)},
	})
}

func nodes(weights []int) []selector.Node {
	list := make([]selector.Node, len(weights))
	for i, weight := range weights {
		list[i] = newNode(i, weight)
	}
	return list
}

// fresh returns a new selector of these nodes.
func (k *kratos) fresh(list []selector.Node) selector.Selector {
	made := k.builder.Build()
	made.Apply(list)
	return made
}

// choose is one call that goes well, outside of what is timed.
func choose(from selector.Selector) selector.Node {
	node, done, err := from.Select(context.Background())
	if err != nil {
		return nil
	}
	done(context.Background(), selector.DoneInfo{})
	return node
}

func (k *kratos) operations() map[string]operation {
	loop := func(count int) time.Duration { return emptyLoop(k.nodes[0], count) }
	return map[string]operation{
		"pick":        {k.call, loop}, // there is no picker to hold: it is a call
		"call":        {k.call, loop},
		"filtered":    {k.filtered, loop},
		"build":       {k.build, loop},
		"change":      {k.change, loop},
		"change_1000": {k.changeAndPick, loop},
		"refresh":     {k.refresh, loop},
	}
}

// call: Select before and done after the round trip in do of the HTTP client
// (transport/http/client.go). That of a client without filters passes an empty list of them;
// here nothing is passed.
func (k *kratos) call(count int) time.Duration {
	ctx, from := context.Background(), k.selector
	sum := uintptr(0)
	begin := time.Now()
	for range count {
		node, done, err := from.Select(ctx)
		if err != nil {
			panic(err)
		}
		done(ctx, selector.DoneInfo{})
		sum += address(node)
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// filtered: the same where the client was given WithNodeFilter(filter.Version("1")). The client
// makes the option anew for each call; here it is made once.
func (k *kratos) filtered(count int) time.Duration {
	ctx, from := context.Background(), k.selector
	option := selector.WithNodeFilter(filter.Version("1"))
	sum := uintptr(0)
	begin := time.Now()
	for range count {
		node, done, err := from.Select(ctx, option)
		if err != nil {
			panic(err)
		}
		done(ctx, selector.DoneInfo{})
		sum += address(node)
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// build: the selector that NewClient of the HTTP client makes, and the first Apply by update of
// its resolver (transport/http/resolver.go).
func (k *kratos) build(count int) time.Duration {
	builder, list := k.builder, k.nodes
	sum := uintptr(0)
	begin := time.Now()
	for range count {
		made := builder.Build()
		made.Apply(list)
		sum += address(made)
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// changes returns the list after the change, and that after the change back. They have all nodes
// in common but that which changes.
func (k *kratos) changes() [2][]selector.Node {
	list := slices.Clone(k.nodes)
	if n := len(k.weights); k.comes {
		list = append(list, newNode(n, k.weights[0]))
	} else {
		list[n/2] = newNode(n/2, k.weights[n/2]+1)
	}
	return [2][]selector.Node{list, k.nodes}
}

// change: Apply by update of the resolver, then one call. Kratos can be told of whole lists only.
func (k *kratos) change(count int) time.Duration {
	return k.apply(k.changes(), count)
}

// refresh: the same with lists that have no node in common, as the resolver makes all of them anew
// each time. To find out what differs is no part of Kratos.
func (k *kratos) refresh(count int) time.Duration {
	weights := slices.Clone(k.weights)
	if n := len(weights); k.comes {
		weights = append(weights, weights[0])
	} else {
		weights[n/2]++
	}
	return k.apply([2][]selector.Node{nodes(weights), nodes(k.weights)}, count)
}

// apply times Apply of the one and the other list in turn, each with a call.
func (k *kratos) apply(lists [2][]selector.Node, count int) time.Duration {
	ctx, running := context.Background(), k.fresh(lists[1])
	choose(running)
	sum := uintptr(0)
	begin := time.Now()
	for i := range count {
		running.Apply(lists[i%2])
		node, done, err := running.Select(ctx)
		if err != nil {
			panic(err)
		}
		done(ctx, selector.DoneInfo{})
		sum += address(node)
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// changeAndPick: change with many calls.
func (k *kratos) changeAndPick(count int) time.Duration {
	ctx, lists, running := context.Background(), k.changes(), k.fresh(k.nodes)
	choose(running)
	sum := uintptr(0)
	begin := time.Now()
	for i := range count {
		running.Apply(lists[i%2])
		for range changePicks {
			node, done, err := running.Select(ctx)
			if err != nil {
				panic(err)
			}
			done(ctx, selector.DoneInfo{})
			sum += address(node)
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

func (k *kratos) picks(count int) []int {
	index, from := indices(len(k.weights)), k.fresh(k.nodes)
	picks := make([]int, count)
	for i := range picks {
		picks[i] = -1
		if node := choose(from); node != nil {
			picks[i] = index[node.Address()]
		}
	}
	return picks
}

func (k *kratos) moved() (before, added []int, err error) {
	return nil, nil, errors.New("Kratos does not pick by key")
}

// memory: each load-aware node gets a cached weight once it has been looked at. The weighted
// selector has all that it holds after one pick, and none of the others comes to hold more.
func (k *kratos) memory() int64 {
	count := 1
	if k.loadAware {
		count = mostPicks
	}
	return held(func() any {
		made := k.fresh(k.nodes)
		for range count {
			choose(made)
		}
		return made
	})
}
