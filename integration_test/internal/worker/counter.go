package worker

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// sharedCounter is a counter and the last token, in memory that processes share. Nothing but the lock under
// test keeps it right.
type sharedCounter struct{ memory []byte }

const counterSize = 16

// CreateCounter makes a counter's file.
func CreateCounter(path string) error { return os.WriteFile(path, make([]byte, counterSize), 0o600) }

// ReadCounter returns what a counter has come to.
func ReadCounter(path string) (int64, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return int64(binary.NativeEndian.Uint64(content)), nil //nolint:gosec // as it was written
}

func openCounter(path string) (*sharedCounter, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	memory, err := unix.Mmap(int(file.Fd()), 0, counterSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &sharedCounter{memory}, nil
}

func (s *sharedCounter) close() { _ = unix.Munmap(s.memory) }

// change reads, lets others run, and writes.
func (s *sharedCounter) change(token int64) error {
	value := binary.NativeEndian.Uint64(s.memory)
	before := int64(binary.NativeEndian.Uint64(s.memory[8:])) //nolint:gosec // as it was written
	if token <= before {
		return fmt.Errorf("token %d after %d", token, before)
	}
	runtime.Gosched()
	binary.NativeEndian.PutUint64(s.memory, value+1)
	binary.NativeEndian.PutUint64(s.memory[8:], uint64(token)) //nolint:gosec // positive
	return nil
}
