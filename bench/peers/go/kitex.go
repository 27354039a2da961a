package main

import (
	"context"
	"fmt"

	"github.com/cloudwego/kitex/pkg/discovery"
	"github.com/cloudwego/kitex/pkg/klog"
	"github.com/cloudwego/kitex/pkg/loadbalance"
)

const (
	service       = "service" // the key under which a balancer keeps the picker
	virtualFactor = 160
)

// kitex has a balancer for each purpose, so that no operation disturbs another.
type kitex struct {
	task    task
	build   func() loadbalance.Loadbalancer
	results [2]discovery.Result // as given, and as changed

	calls  loadbalance.Loadbalancer // nobody changes it
	picker loadbalance.Picker       // its

	changing loadbalance.Loadbalancer
	changes  [2]discovery.Change // to the second result, and back
	at       int                 // the result that `changing` has
}

func newKitex(name string, t task) (*kitex, error) {
	klog.SetLevel(klog.LevelFatal)
	builders := map[string]func() loadbalance.Loadbalancer{
		"round_robin":                      loadbalance.NewWeightedRoundRobinBalancer,
		"weighted_round_robin":             loadbalance.NewWeightedRoundRobinBalancer,
		"interleaved_weighted_round_robin": loadbalance.NewInterleavedWeightedRoundRobinBalancer,
		"random":                           loadbalance.NewWeightedRandomBalancer,
		"weighted_random":                  loadbalance.NewWeightedRandomBalancer,
		"consistent_hash":                  newRing,
	}
	if name == "kitex alias" {
		builders = map[string]func() loadbalance.Loadbalancer{
			"weighted_random": loadbalance.NewWeightedRandomWithAliasMethodBalancer,
		}
	}
	build, ok := builders[t.algorithm]
	if !ok {
		return nil, fmt.Errorf("%s has no %s", name, t.algorithm)
	}
	k := &kitex{task: t, build: build, calls: build()}
	k.results = [2]discovery.Result{result(t.weights), result(t.changed())}
	k.picker = k.calls.GetPicker(k.results[0])
	return k, nil
}

func newRing() loadbalance.Loadbalancer {
	return loadbalance.NewConsistBalancer(loadbalance.ConsistentHashOption{
		GetKey:        func(_ context.Context, request any) string { return request.(string) },
		VirtualFactor: virtualFactor,
		Weighted:      true, // the weights are 1
	})
}

func result(weights []int) discovery.Result {
	instances := make([]discovery.Instance, len(weights))
	for i, weight := range weights {
		instances[i] = discovery.NewInstance("tcp", address(i), weight, nil)
	}
	return discovery.Result{Cacheable: true, CacheKey: service, Instances: instances}
}

// toChange makes what changes are made to, where there is none yet.
func (k *kitex) toChange() loadbalance.Rebalancer {
	if k.changing == nil {
		k.changing = k.build()
		k.changing.GetPicker(k.results[0])
		k.changes[0], _ = discovery.DefaultDiff(service, k.results[0], k.results[1])
		k.changes[1], _ = discovery.DefaultDiff(service, k.results[1], k.results[0])
	}
	return k.changing.(loadbalance.Rebalancer)
}

func (k *kitex) operation(name string) (run, empty func(count int), err error) {
	ctx, requests, picker := context.Background(), k.task.requests, k.picker
	var last discovery.Instance
	var key any
	// The loop of all operations, without one.
	empty = func(count int) {
		at := 0
		for range count {
			key = requests[at]
			if at++; at == len(requests) {
				at = 0
			}
		}
		sink = key
	}
	switch name {
	case "pick":
		run = func(count int) {
			at := 0
			for range count {
				last = picker.Next(ctx, requests[at])
				if at++; at == len(requests) {
					at = 0
				}
			}
			sink = last
		}
	case "call":
		// As the client's middleware of service discovery does for each call, after it has the
		// balancer: get the picker, ask it, give it back if it wants to be given back.
		calls, known := k.calls, k.results[0]
		run = func(count int) {
			at := 0
			for range count {
				picker := calls.GetPicker(known)
				last = picker.Next(ctx, requests[at])
				if reusable, ok := picker.(interface{ Recycle() }); ok {
					reusable.Recycle()
				}
				if at++; at == len(requests) {
					at = 0
				}
			}
			sink = last
		}
	case "build":
		known := k.results[0]
		run = func(count int) {
			for range count {
				sink = k.build().GetPicker(known)
			}
		}
	case "change", "change_1000":
		picks := 1
		if name == "change_1000" {
			picks = batch
		}
		rebalancer := k.toChange()
		run = func(count int) {
			at := 0
			for range count {
				rebalancer.Rebalance(k.changes[k.at])
				k.at = 1 - k.at
				picker := k.changing.GetPicker(k.results[k.at])
				for range picks {
					last = picker.Next(ctx, requests[at])
					if at++; at == len(requests) {
						at = 0
					}
				}
			}
			sink = last
		}
	case "refresh":
		rebalancer := k.toChange()
		run = func(count int) {
			at := 0
			for range count {
				// As the refresher of the balancers' cache does with what a resolver returns.
				change, _ := discovery.DefaultDiff(service, k.results[k.at], k.results[1-k.at])
				rebalancer.Rebalance(change)
				k.at = 1 - k.at
				last = k.changing.GetPicker(k.results[k.at]).Next(ctx, requests[at])
				if at++; at == len(requests) {
					at = 0
				}
			}
			sink = last
		}
	default:
		return nil, nil, fmt.Errorf("kitex has no %s", name)
	}
	return run, empty, nil
}

func (k *kitex) fresh() func(key any) string {
	return pickBy(k.build().GetPicker(k.results[0]))
}

func pickBy(picker loadbalance.Picker) func(key any) string {
	return func(key any) string {
		if instance := picker.Next(context.Background(), key); instance != nil {
			return instance.Address().String()
		}
		return ""
	}
}

// moved asks one balancer before and after: the seed of Kitex' hash is the process' own.
func (k *kitex) moved() (before, added []int, err error) {
	if k.task.algorithm != "consistent_hash" {
		return nil, nil, fmt.Errorf("%s has no keys", k.task.algorithm)
	}
	balancer := k.build()
	owners := func(known discovery.Result) []int {
		pick, found := pickBy(balancer.GetPicker(known)), make([]int, len(k.task.requests))
		for at, key := range k.task.requests {
			found[at] = k.task.indexOf(pick(key))
		}
		return found
	}
	before = owners(k.results[0])
	change, _ := discovery.DefaultDiff(service, k.results[0], k.results[1])
	balancer.(loadbalance.Rebalancer).Rebalance(change)
	return before, owners(k.results[1]), nil
}

func (k *kitex) held(walk func(pick func(key any))) any {
	balancer := k.build()
	picker := balancer.GetPicker(k.results[0])
	walk(func(key any) { picker.Next(context.Background(), key) })
	return balancer
}
