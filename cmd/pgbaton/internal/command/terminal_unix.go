//go:build unix

package command

import (
	"os"

	"golang.org/x/sys/unix"
)

// terminal reports whether a file is one, where people can be asked.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	return err == nil
}
