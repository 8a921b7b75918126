package command

import (
	"os"

	"golang.org/x/sys/windows"
)

// terminal reports whether a file is one, where people can be asked.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	var mode uint32
	return windows.GetConsoleMode(windows.Handle(file.Fd()), &mode) == nil
}
