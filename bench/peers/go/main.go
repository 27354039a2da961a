// The peer of the benchmark for Kitex and Kratos, as published; its versions are in go.mod.
//
// It answers requests, one JSON object a line, as ../PROTOCOL.md says. kitex.go and kratos.go
// have the loops that are timed, timing.go what is around them, simulate.go the simulated day.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
)

// request has the fields of all requests; of each only those that it needs are set.
type request struct {
	Do        string   `json:"do"`
	System    string   `json:"system"`
	Algorithm string   `json:"algorithm"`
	Weights   []int    `json:"weights"`
	Keys      []string `json:"keys"`
	Operation string   `json:"operation"`
	Count     int      `json:"count"`
	day
}

// subject is what is measured: a picker of one system, of instances 0 to n - 1.
type subject interface {
	// operations returns the operations that the system has.
	operations() map[string]operation
	// picks returns whom a fresh picker picks, -1 for nobody.
	picks(count int) []int
	// moved returns who has each key before and after instance n has come.
	moved() (before, added []int, err error)
	// memory returns the bytes that a fresh picker holds, its list of instances apart.
	memory() int64
	// simulate plays a day with a fresh load-aware policy.
	simulate(day) (outcome, error)
}

// peer is the state between requests: the picker that was made last.
type peer struct {
	subject subject
}

// modules are the systems and the modules that they come from.
var modules = map[string]string{
	"kitex":       "github.com/cloudwego/kitex",
	"kitex alias": "github.com/cloudwego/kitex",
	"kratos":      "github.com/go-kratos/kratos/v2",
}

func describe() (any, error) {
	info, found := debug.ReadBuildInfo()
	if !found {
		return nil, errors.New("the program does not know what it was built of")
	}
	systems := map[string]string{}
	for system, path := range modules {
		for _, module := range info.Deps {
			if module.Path == path {
				systems[system] = module.Version
				if module.Replace != nil {
					systems[system] = module.Replace.Path + " " + module.Replace.Version
				}
			}
		}
	}
	platform := fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return map[string]any{"systems": systems, "runtime": platform}, nil
}

func (p *peer) make(r *request) (any, error) {
	p.subject = nil // the one before is garbage, whatever comes
	n := len(r.Weights)
	if n == 0 || n >= 1<<24 || slices.Min(r.Weights) < 1 {
		return nil, errors.New("want weights of 1 or more, of 1 to 16,777,215 instances")
	}
	isEven := slices.Min(r.Weights) == slices.Max(r.Weights)
	switch r.Algorithm {
	case "round_robin", "random":
		if !isEven {
			return nil, fmt.Errorf("%s wants weights that are all the same", r.Algorithm)
		}
	case "consistent_hash":
		if !isEven || r.Weights[0] != 1 || len(r.Keys) == 0 {
			return nil, errors.New("consistent_hash wants weights of 1, and keys")
		}
	}
	var made subject
	var err error
	switch r.System {
	case "kitex", "kitex alias":
		made, err = newKitex(r.System, r.Algorithm, r.Weights, r.Keys)
	case "kratos":
		made, err = newKratos(r.Algorithm, r.Weights)
	default:
		err = fmt.Errorf("%q is none of the systems here", r.System)
	}
	if err != nil {
		return nil, err
	}
	p.subject = made
	return map[string]any{}, nil
}

func (p *peer) time(r *request) (any, error) {
	measured, found := p.subject.operations()[r.Operation]
	if !found {
		return nil, fmt.Errorf("the system has no operation %q", r.Operation)
	}
	if r.Count < 1 {
		return nil, errors.New("want a count of 1 or more")
	}
	took := measured.run(r.Count)
	empty := measured.empty(r.Count)
	return map[string]int64{"ns": took.Nanoseconds(), "empty_ns": empty.Nanoseconds()}, nil
}

// answer returns what is to be answered to a line. A panic below it is an error like others, for
// so ends a loop that finds nobody to pick.
func (p *peer) answer(line []byte) (answer any, err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("%v", caught)
		}
	}()
	var r request
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return nil, err
	}
	switch r.Do {
	case "describe":
		return describe()
	case "make":
		return p.make(&r)
	case "time", "picks", "moved", "memory", "simulate":
		if p.subject == nil {
			return nil, fmt.Errorf("%q: nothing is made yet", r.Do)
		}
		return p.ask(&r)
	}
	return nil, fmt.Errorf("%q is nothing that can be done", r.Do)
}

// ask returns what the picker that was made says to a request.
func (p *peer) ask(r *request) (any, error) {
	switch r.Do {
	case "time":
		return p.time(r)
	case "picks":
		return map[string][]int{"picks": p.subject.picks(r.Count)}, nil
	case "moved":
		before, added, err := p.subject.moved()
		return map[string][]int{"before": before, "added": added}, err
	case "memory":
		return map[string]int64{"bytes": p.subject.memory()}, nil
	default:
		return p.subject.simulate(r.day)
	}
}

func main() {
	p := &peer{}
	input := bufio.NewReader(os.Stdin)
	output := json.NewEncoder(os.Stdout) // writes each object at once, with its line feed
	for {
		line, end := input.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			answer, err := p.answer(line)
			if err != nil {
				answer = map[string]string{"error": err.Error()}
			}
			if err := output.Encode(answer); err != nil {
				log.Fatal(err)
			}
		}
		if end == io.EOF {
			return
		}
		if end != nil {
			log.Fatal(end)
		}
	}
}
