package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/filter"
	"github.com/go-kratos/kratos/v2/selector/p2c"
	"github.com/go-kratos/kratos/v2/selector/random"
	"github.com/go-kratos/kratos/v2/selector/wrr"
)

// kratos has a selector for each purpose, so that no operation disturbs another.
type kratos struct {
	task     task
	build    func() selector.Selector
	lists    [2][]selector.Node // as given, and as changed
	calls    selector.Selector  // nobody changes it
	changing selector.Selector
	at       int // the list that `changing` has
}

func newKratos(t task) (*kratos, error) {
	builders := map[string]func() selector.Selector{
		"weighted_round_robin": func() selector.Selector { return wrr.New() },
		"random":               func() selector.Selector { return random.New() },
		"p2c":                  func() selector.Selector { return p2c.New() },
	}
	build, ok := builders[t.algorithm]
	if !ok {
		return nil, fmt.Errorf("kratos has no %s", t.algorithm)
	}
	k := &kratos{task: t, build: build, calls: build()}
	k.lists = [2][]selector.Node{nodes(t.weights), nodes(t.changed())}
	k.calls.Apply(k.lists[0])
	return k, nil
}

func nodes(weights []int) []selector.Node {
	made := make([]selector.Node, len(weights))
	for i, weight := range weights {
		made[i] = selector.NewNode("http", address(i), &registry.ServiceInstance{
			Version:  strconv.Itoa(i % 2),
			Metadata: map[string]string{"weight": strconv.Itoa(weight)},
		})
	}
	return made
}

func (k *kratos) operation(name string) (run, empty func(count int), err error) {
	ctx, told := context.Background(), selector.DoneInfo{}
	var last selector.Node
	empty = func(count int) {
		total := 0
		for at := range count {
			total ^= at
		}
		sink = total
	}
	// Select, and report at once that the call went well: Kratos has no picker to hold.
	calls := k.calls
	switch name {
	case "pick", "call":
		run = func(count int) {
			for range count {
				node, done, err := calls.Select(ctx)
				if err != nil {
					panic(err)
				}
				done(ctx, told)
				last = node
			}
			sink = last
		}
	case "filtered":
		only := selector.WithNodeFilter(filter.Version("1"))
		run = func(count int) {
			for range count {
				node, done, err := calls.Select(ctx, only)
				if err != nil {
					panic(err)
				}
				done(ctx, told)
				last = node
			}
			sink = last
		}
	case "build":
		run = func(count int) {
			for range count {
				built := k.build()
				built.Apply(k.lists[0])
				sink = built
			}
		}
	case "change", "change_1000", "refresh":
		// There is one way to tell a selector: the whole list.
		picks := 1
		if name == "change_1000" {
			picks = batch
		}
		if k.changing == nil {
			k.changing = k.build()
			k.changing.Apply(k.lists[0])
		}
		run = func(count int) {
			for range count {
				k.at = 1 - k.at
				k.changing.Apply(k.lists[k.at])
				for range picks {
					node, done, err := k.changing.Select(ctx)
					if err != nil {
						panic(err)
					}
					done(ctx, told)
					last = node
				}
			}
			sink = last
		}
	default:
		return nil, nil, fmt.Errorf("kratos has no %s", name)
	}
	return run, empty, nil
}

func (k *kratos) fresh() func(key any) string {
	built := k.build()
	built.Apply(k.lists[0])
	return func(any) string {
		node, done, err := built.Select(context.Background())
		if err != nil {
			return ""
		}
		done(context.Background(), selector.DoneInfo{})
		return node.Address()
	}
}

func (k *kratos) moved() (before, added []int, err error) {
	return nil, nil, fmt.Errorf("kratos has no keys")
}

func (k *kratos) held(walk func(pick func(key any))) any {
	built := k.build()
	built.Apply(k.lists[0])
	walk(func(any) {
		if _, done, err := built.Select(context.Background()); err == nil {
			done(context.Background(), selector.DoneInfo{})
		}
	})
	return built
}
