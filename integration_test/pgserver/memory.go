package pgserver

import (
	"bufio"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	memoryDir = "/dev/shm" // Linux has a file system in memory there
	// plenty is more than all servers of a run take at a time, with as much again for everything else.
	plenty = 8 << 30
)

// tempDir is where servers keep their files: in memory if the machine has plenty and TMPDIR does not say otherwise. A run
// of all tests makes and drops more than a thousand databases of three hundred files each, which on ext4 was nearly half of
// the kernel's time.
func tempDir() string {
	if os.Getenv("TMPDIR") == "" && availableMemory() >= plenty && freeSpace(memoryDir) >= plenty {
		return memoryDir
	}
	return os.TempDir()
}

// freeSpace is how many bytes anybody may still write to a directory's file system, and 0 if there is none.
func freeSpace(dir string) uint64 {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize) //nolint:gosec // a block's size is positive
}

// availableMemory is how many bytes Linux can give to programs without swapping; 0 on other systems.
func availableMemory() uint64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kB uint64
		if n, _ := fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &kB); n == 1 {
			return kB << 10
		}
	}
	return 0
}
