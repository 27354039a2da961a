package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cloudwego/kitex/pkg/discovery"
	"github.com/cloudwego/kitex/pkg/loadbalance"
)

const (
	cacheKey    = "benchmark" // the service, to a balancer
	ringPoints  = 160         // of each instance
	changePicks = 1_000       // of the operation change_1000
)

// kitex is a balancer of Kitex with its picker. It is called through Kitex' interfaces only.
type kitex struct {
	newBalancer func() loadbalance.Loadbalancer
	comes       bool // the change: an instance comes and goes; else a weight grows and shrinks
	weights     []int
	requests    []any // the keys, or one nil where nothing is picked by key

	result   discovery.Result
	balancer loadbalance.Loadbalancer
	picker   loadbalance.Picker
}

// recyclable is what Kitex' middleware asks pickers for; its own name for it is internal.
type recyclable interface {
	Recycle()
}

// keyOf is how the consistent hash gets the key out of a request.
func keyOf(_ context.Context, request any) string { return request.(string) }

func newKitex(system, algorithm string, weights []int, keys []string) (*kitex, error) {
	k := &kitex{weights: weights, requests: []any{nil}}
	switch system + " " + algorithm {
	case "kitex round_robin": // what it takes where weights are equal
		k.newBalancer, k.comes = loadbalance.NewWeightedRoundRobinBalancer, true
	case "kitex weighted_round_robin":
		k.newBalancer = loadbalance.NewWeightedRoundRobinBalancer
	case "kitex interleaved_weighted_round_robin":
		k.newBalancer = loadbalance.NewInterleavedWeightedRoundRobinBalancer
	case "kitex random": // what it takes where weights are equal
		k.newBalancer, k.comes = loadbalance.NewWeightedRandomBalancer, true
	case "kitex weighted_random":
		k.newBalancer = loadbalance.NewWeightedRandomBalancer
	case "kitex alias weighted_random":
		k.newBalancer = loadbalance.NewWeightedRandomWithAliasMethodBalancer
	case "kitex consistent_hash":
		option := loadbalance.NewConsistentHashOption(keyOf)
		option.VirtualFactor = ringPoints
		option.Weighted = false
		k.newBalancer = func() loadbalance.Loadbalancer {
			return loadbalance.NewConsistBalancer(option)
		}
		k.comes = true
	default:
		return nil, fmt.Errorf("%s has no %s", system, algorithm)
	}
	if len(keys) > 0 {
		k.requests = make([]any, len(keys))
		for i, key := range keys {
			k.requests[i] = key
		}
	}
	k.result = cached(instances(weights))
	k.balancer = k.newBalancer()
	k.picker = k.balancer.GetPicker(k.result)
	return k, nil
}

func newInstance(i, weight int) discovery.Instance {
	return discovery.NewInstance("tcp", host(i), weight, nil)
}

func instances(weights []int) []discovery.Instance {
	list := make([]discovery.Instance, len(weights))
	for i, weight := range weights {
		list[i] = newInstance(i, weight)
	}
	return list
}

// cached returns what a resolver has found, such that balancers keep the picker made of it.
func cached(list []discovery.Instance) discovery.Result {
	return discovery.Result{Cacheable: true, CacheKey: cacheKey, Instances: list}
}

func (k *kitex) operations() map[string]operation {
	walk := func(count int) time.Duration { return emptyWalk(k.requests, count) }
	loop := func(count int) time.Duration { return emptyLoop(k.picker, count) }
	return map[string]operation{
		"pick":        {k.pick, walk},
		"call":        {k.call, walk},
		"build":       {k.build, loop},
		"change":      {k.change, walk},
		"change_1000": {k.changeAndPick, walk},
		"refresh":     {k.refresh, walk},
	}
}

// pick: Next of Kitex' Picker, which loadbalancer.go of pkg/loadbalance declares.
func (k *kitex) pick(count int) time.Duration {
	ctx, picker, requests := context.Background(), k.picker, k.requests
	sum, next := uintptr(0), 0
	begin := time.Now()
	for range count {
		sum += address(picker.Next(ctx, requests[next]))
		if next++; next == len(requests) {
			next = 0
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// call: what the client's newResolveMWBuilder (client/middlewares.go) does in each attempt of a
// call: the picker of the service, Next, and Recycle of a picker that has it. Finding the
// balancer of the service (lbcache's Get) before that is not in it.
func (k *kitex) call(count int) time.Duration {
	ctx, balancer, result, requests := context.Background(), k.balancer, k.result, k.requests
	sum, next := uintptr(0), 0
	begin := time.Now()
	for range count {
		picker := balancer.GetPicker(result)
		sum += address(picker.Next(ctx, requests[next]))
		if r, ok := picker.(recyclable); ok {
			r.Recycle()
		}
		if next++; next == len(requests) {
			next = 0
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// build: the first GetPicker for a service, which makes all that its balancer then keeps.
func (k *kitex) build(count int) time.Duration {
	newBalancer, result := k.newBalancer, k.result
	sum := uintptr(0)
	begin := time.Now()
	for range count {
		sum += address(newBalancer().GetPicker(result))
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// running returns a balancer of its own that has served the list, so that call stays warm.
func (k *kitex) running(list discovery.Result) (loadbalance.Loadbalancer, loadbalance.Rebalancer) {
	balancer := k.newBalancer()
	balancer.GetPicker(list).Next(context.Background(), k.requests[0])
	return balancer, balancer.(loadbalance.Rebalancer)
}

// changes returns the change and the change back, as a resolver finds them. The two lists have
// all instances in common but that which changes.
func (k *kitex) changes() [2]discovery.Change {
	list := slices.Clone(k.result.Instances)
	if n := len(k.weights); k.comes {
		list = append(list, newInstance(n, k.weights[0]))
	} else {
		list[n/2] = newInstance(n/2, k.weights[n/2]+1)
	}
	there, _ := discovery.DefaultDiff(cacheKey, k.result, cached(list))
	back, _ := discovery.DefaultDiff(cacheKey, cached(list), k.result)
	return [2]discovery.Change{there, back}
}

// change: Rebalance as in Refresh of lbcache's Balancer (pkg/loadbalance/lbcache/cache.go), then
// one call as above.
func (k *kitex) change(count int) time.Duration {
	ctx, changes, requests := context.Background(), k.changes(), k.requests
	balancer, rebalancer := k.running(k.result)
	sum, next := uintptr(0), 0
	begin := time.Now()
	for i := range count {
		change := changes[i%2]
		rebalancer.Rebalance(change)
		picker := balancer.GetPicker(change.Result)
		sum += address(picker.Next(ctx, requests[next]))
		if r, ok := picker.(recyclable); ok {
			r.Recycle()
		}
		if next++; next == len(requests) {
			next = 0
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// changeAndPick: the same with many picks by the picker that is got once.
func (k *kitex) changeAndPick(count int) time.Duration {
	ctx, changes, requests := context.Background(), k.changes(), k.requests
	balancer, rebalancer := k.running(k.result)
	sum, next := uintptr(0), 0
	begin := time.Now()
	for i := range count {
		change := changes[i%2]
		rebalancer.Rebalance(change)
		picker := balancer.GetPicker(change.Result)
		for range changePicks {
			sum += address(picker.Next(ctx, requests[next]))
			if next++; next == len(requests) {
				next = 0
			}
		}
		if r, ok := picker.(recyclable); ok {
			r.Recycle()
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// refresh: the whole of Refresh of lbcache's Balancer but for asking the resolver: Diff, which is
// DefaultDiff with the resolvers there are, and Rebalance; then one call. Resolvers make a new
// list of new instances each time, so the two lists have none in common.
func (k *kitex) refresh(count int) time.Duration {
	ctx, requests := context.Background(), k.requests
	weights := slices.Clone(k.weights)
	if n := len(weights); k.comes {
		weights = append(weights, weights[0])
	} else {
		weights[n/2]++
	}
	lists := [2]discovery.Result{cached(instances(k.weights)), cached(instances(weights))}
	balancer, rebalancer := k.running(lists[0])
	sum, next := uintptr(0), 0
	begin := time.Now()
	for i := range count {
		previous, list := lists[i%2], lists[(i+1)%2]
		if change, isOne := discovery.DefaultDiff(cacheKey, previous, list); isOne {
			rebalancer.Rebalance(change)
		}
		picker := balancer.GetPicker(list)
		sum += address(picker.Next(ctx, requests[next]))
		if r, ok := picker.(recyclable); ok {
			r.Recycle()
		}
		if next++; next == len(requests) {
			next = 0
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// chosen returns whom a picker picks for so many requests.
func (k *kitex) chosen(picker loadbalance.Picker, count int) []int {
	index := indices(len(k.weights) + 1)
	picks := make([]int, count)
	for i := range picks {
		picks[i] = -1
		instance := picker.Next(context.Background(), k.requests[i%len(k.requests)])
		if instance != nil {
			picks[i] = index[instance.Address().String()]
		}
	}
	return picks
}

func (k *kitex) picks(count int) []int {
	return k.chosen(k.newBalancer().GetPicker(k.result), count)
}

// moved asks one balancer before and after. Kitex' hash has another seed in each process.
func (k *kitex) moved() (before, added []int, err error) {
	if k.requests[0] == nil {
		return nil, nil, errors.New("there are no keys")
	}
	balancer, rebalancer := k.running(k.result)
	before = k.chosen(balancer.GetPicker(k.result), len(k.requests))
	change := k.changes()[0]
	rebalancer.Rebalance(change)
	added = k.chosen(balancer.GetPicker(change.Result), len(k.requests))
	return before, added, nil
}

// memory: Kitex makes all that it holds with the picker; no pick adds to it.
func (k *kitex) memory() int64 {
	return held(func() any {
		balancer := k.newBalancer()
		picker := balancer.GetPicker(k.result)
		picker.Next(context.Background(), k.requests[0])
		return []any{balancer, picker}
	})
}

func (k *kitex) simulate(day) (outcome, error) {
	return outcome{}, errors.New("Kitex has no load-aware policy")
}
