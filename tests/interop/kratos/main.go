// A server of go-kratos, registered in etcd by Kratos' own registry; or, with -call or -resolve,
// a client of it.
//
// The server answers GET and POST /helloworld/{name}, and helloworld.Greeter/SayHello of gRPC's
// examples. Its answers say who has answered: in JSON, and in the headers x-id and x-version
// (gRPC: initial metadata). Names that ask for more than a greeting:
//
//	slow-250ms   a greeting after so long
//	fail-503     a Kratos error of this code, reason HELLO_FAILED
//
// Once it is registered it prints one line of JSON: {"id", "version", "http", "grpc"}.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	kratosetcd "github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2"
	"github.com/go-kratos/kratos/v2/errors"
	"github.com/go-kratos/kratos/v2/selector/filter"
	"github.com/go-kratos/kratos/v2/transport"
	kratosgrpc "github.com/go-kratos/kratos/v2/transport/grpc"
	kratoshttp "github.com/go-kratos/kratos/v2/transport/http"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/examples/helloworld/helloworld"
)

// Longer than anything that is asked for.
const timeout = 60 * time.Second

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

type greeter struct {
	helloworld.UnimplementedGreeterServer
	id, version, always string
}

type reply struct {
	Message string `json:"message"`
	ID      string `json:"id"`
	Version string `json:"version"`
}

func (g *greeter) greet(ctx context.Context, greeting, name string) (string, error) {
	if server, found := transport.FromServerContext(ctx); found {
		server.ReplyHeader().Set("x-id", g.id)
		server.ReplyHeader().Set("x-version", g.version)
	}
	wish := name
	if g.always != "" {
		wish = g.always
	}
	if text, found := strings.CutPrefix(wish, "slow-"); found {
		pause, err := time.ParseDuration(text)
		if err != nil {
			return "", errors.BadRequest("NO_DURATION", err.Error())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if text, found := strings.CutPrefix(wish, "fail-"); found {
		code, err := strconv.Atoi(text)
		if err != nil {
			return "", errors.BadRequest("NO_CODE", err.Error())
		}
		return "", errors.New(code, "HELLO_FAILED", "no hello from "+g.id)
	}
	return greeting + " " + name, nil
}

func (g *greeter) SayHello(
	ctx context.Context, request *helloworld.HelloRequest,
) (*helloworld.HelloReply, error) {
	message, err := g.greet(ctx, "Hello", request.GetName())
	if err != nil {
		return nil, err
	}
	return &helloworld.HelloReply{Message: message}, nil
}

func (g *greeter) serveHTTP(ctx kratoshttp.Context) error {
	said := struct {
		Greeting string `json:"greeting"`
	}{"Hello"}
	if ctx.Request().Method == http.MethodPost {
		if err := ctx.Bind(&said); err != nil {
			return err
		}
	}
	message, err := g.greet(ctx, said.Greeting, ctx.Vars().Get("name"))
	if err != nil {
		return err
	}
	return ctx.Result(http.StatusOK, &reply{message, g.id, g.version})
}

func serve(registry *kratosetcd.Registry, name, http, grpc string, g *greeter, md pairs) {
	httpServer := kratoshttp.NewServer(kratoshttp.Address(http), kratoshttp.Timeout(timeout))
	route := httpServer.Route("/")
	route.GET("/helloworld/{name}", g.serveHTTP)
	route.POST("/helloworld/{name}", g.serveHTTP)
	grpcServer := kratosgrpc.NewServer(kratosgrpc.Address(grpc), kratosgrpc.Timeout(timeout))
	helloworld.RegisterGreeterServer(grpcServer, g)
	at := map[string]string{"id": g.id, "version": g.version}
	app := kratos.New(
		kratos.ID(g.id),
		kratos.Name(name),
		kratos.Version(g.version),
		kratos.Metadata(md),
		kratos.Registrar(registry),
		kratos.Server(httpServer, grpcServer),
		kratos.AfterStart(func(context.Context) error {
			for kind, server := range map[string]transport.Endpointer{
				"http": httpServer, "grpc": grpcServer,
			} {
				url, err := server.Endpoint()
				if err != nil {
					return err
				}
				at[kind] = url.Host
			}
			return show(at)
		}),
	)
	check(app.Run())
}

// call prints the answers to n requests, each of which goes where Kratos' balancer wants it.
func call(registry *kratosetcd.Registry, name, path, version string, n int) {
	options := []kratoshttp.ClientOption{
		kratoshttp.WithEndpoint("discovery:///" + name),
		kratoshttp.WithDiscovery(registry),
		kratoshttp.WithBlock(),
		kratoshttp.WithTimeout(timeout),
	}
	if version != "" {
		options = append(options, kratoshttp.WithNodeFilter(filter.Version(version)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	client, err := kratoshttp.NewClient(ctx, options...)
	check(err)
	defer client.Close()
	for i := 0; i < n; i++ {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+name+path, nil)
		check(err)
		response, err := client.Do(request)
		check(err)
		body, err := io.ReadAll(response.Body)
		check(err)
		check(response.Body.Close())
		fmt.Println(string(body))
	}
}

func show(value any) error { return json.NewEncoder(os.Stdout).Encode(value) }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	metadata := pairs{}
	etcd := flag.String("etcd", "127.0.0.1:2379", "etcd's `address`")
	name := flag.String("name", "helloworld", "the service")
	id := flag.String("id", "one", "of this instance")
	version := flag.String("version", "", "of this instance; with -call: of those that are called")
	http := flag.String("http", "127.0.0.1:0", "`address` to listen at")
	grpc := flag.String("grpc", "127.0.0.1:0", "`address` to listen at")
	ttl := flag.Duration("ttl", 15*time.Second, "of the lease")
	always := flag.String("always", "", "slow-... or fail-...: so whatever the `name` asked for")
	flag.Var(metadata, "metadata", "`key=value`, such as weight=10; any number of times")
	resolve := flag.Bool("resolve", false, "serve nothing; print the instances that there are")
	n := flag.Int("call", 0, "serve nothing; print the answers to so many requests")
	path := flag.String("path", "/", "what -call asks for")
	flag.Parse()

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{*etcd}})
	check(err)
	defer client.Close()
	registry := kratosetcd.New(client, kratosetcd.RegisterTTL(*ttl))
	switch {
	case *resolve:
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		found, err := registry.GetService(ctx, *name)
		check(err)
		check(show(found))
	case *n > 0:
		call(registry, *name, *path, *version, *n)
	default:
		g := &greeter{id: *id, version: *version, always: *always}
		serve(registry, *name, *http, *grpc, g, metadata)
	}
}
