// An instance that is registered in etcd by Kitex' registry-etcd; or, with -resolve, what its
// resolver finds.
//
// It listens on TCP, and tells who connects its address; it is no server of Kitex' protocol.
// Once it is registered it prints one line of JSON: {"address"}.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/cloudwego/kitex/pkg/registry"
	etcd "github.com/kitex-contrib/registry-etcd"
)

type pairs map[string]string

func (p pairs) String() string { return fmt.Sprint(map[string]string(p)) }

func (p pairs) Set(text string) error {
	key, value, found := strings.Cut(text, "=")
	if !found {
		return fmt.Errorf("want key=value, got %q", text)
	}
	p[key] = value
	return nil
}

func serve(endpoints []string, name, listen string, weight int, tags pairs) {
	listener, err := net.Listen("tcp", listen)
	check(err)
	go func() {
		for {
			connection, err := listener.Accept()
			check(err)
			fmt.Fprintln(connection, listener.Addr())
			connection.Close()
		}
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	made, err := etcd.NewEtcdRegistry(endpoints)
	check(err)
	info := &registry.Info{
		ServiceName: name, Addr: listener.Addr(), Weight: weight, Tags: tags,
	}
	check(made.Register(info))
	check(show(map[string]string{"address": listener.Addr().String()}))
	<-signals
	check(made.Deregister(info))
}

// resolve prints the instances; of their tags those that are asked for, as Kitex lists none.
func resolve(endpoints []string, name string, tags pairs) {
	resolver, err := etcd.NewEtcdResolver(endpoints)
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := resolver.Resolve(ctx, name)
	check(err)
	instances := []map[string]any{}
	for _, instance := range found.Instances {
		has := map[string]string{}
		for key := range tags {
			if value, found := instance.Tag(key); found {
				has[key] = value
			}
		}
		address := instance.Address()
		instances = append(instances, map[string]any{
			"network": address.Network(),
			"address": address.String(),
			"weight":  instance.Weight(),
			"tags":    has,
		})
	}
	check(show(instances))
}

func show(value any) error { return json.NewEncoder(os.Stdout).Encode(value) }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	tags := pairs{}
	endpoint := flag.String("etcd", "127.0.0.1:2379", "etcd's `address`")
	name := flag.String("name", "echo", "the service")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to listen at")
	weight := flag.Int("weight", 10, "its weight")
	flag.Var(tags, "tag", "`key=value`; with -resolve: a key to ask for; any number of times")
	resolves := flag.Bool("resolve", false, "register nothing; print the instances that there are")
	flag.Parse()
	if *resolves {
		resolve([]string{*endpoint}, *name, tags)
	} else {
		serve([]string{*endpoint}, *name, *listen, *weight, tags)
	}
}
