package main

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"
)

// operation is something to be timed, and the loop of the same form with nothing in it.
type operation struct {
	run, empty func(count int) time.Duration
}

// sink gets the sum of every loop, so that the compiler has to make all that goes into it.
var sink uintptr

// address returns where the value of an interface is.
//
// It is how loops use a result: it is there already, and whatever the system returned is not
// itself read. So it costs all systems the same, next to nothing.
func address(value any) uintptr {
	return (*[2]uintptr)(unsafe.Pointer(&value))[1]
}

// emptyWalk is the loop of operations that go through the keys, without the operation.
func emptyWalk(requests []any, count int) time.Duration {
	sum, next := uintptr(0), 0
	begin := time.Now()
	for range count {
		sum += address(requests[next])
		if next++; next == len(requests) {
			next = 0
		}
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// emptyLoop is the loop of all other operations, without the operation.
func emptyLoop(value any, count int) time.Duration {
	sum := uintptr(0)
	begin := time.Now()
	for range count {
		sum += address(value)
	}
	took := time.Since(begin)
	sink += sum
	return took
}

// held returns how many bytes of the heap there are more once something is made.
func held(something func() any) int64 {
	before := heapBytes()
	made := something()
	after := heapBytes()
	runtime.KeepAlive(made)
	return after - before
}

// heapBytes returns the bytes in use. The second collection takes what the first left in pools.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC()
	var statistics runtime.MemStats
	runtime.ReadMemStats(&statistics)
	return int64(statistics.HeapAlloc)
}

// host returns the address of instance i.
func host(i int) string {
	return fmt.Sprintf("10.%d.%d.%d:8888", i>>16&255, i>>8&255, i&255)
}

// indices returns the index of each of so many addresses.
func indices(n int) map[string]int {
	index := make(map[string]int, n)
	for i := range n {
		index[host(i)] = i
	}
	return index
}
