package pgserver

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// The test binary plays other programs as well, in processes of their own that a test may kill or run as
// another user. The variable names the part.
const envHelper = "PGSERVER_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(envHelper) {
	case "":
		goleak.VerifyTestMain(m)
	case "binaries": // starts a server, says so and stays until it is killed or its input ends
		helperBinaries()
	case "sandbox": // keeps programs in a sandbox until it is killed
		helperSandbox()
	case "docker": // starts a container, says so and stays until it is killed
		s, err := startContainer(context.Background(), os.Getenv("PGSERVER_TEST_IMAGE"))
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		fmt.Println(s.URL())
		_, _ = os.Stdin.Read(make([]byte, 1))
	case "start-bare": // what Start says on a machine that has nothing
		binDirPatterns = nil
		_, err := Start(context.Background())
		fmt.Println(err)
	}
}

func helperBinaries() {
	s, err := StartBinaries(context.Background(), os.Getenv("PGSERVER_TEST_BINDIR"))
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Println(s.PID(), s.DataDir(), s.URL())
	_, _ = os.Stdin.Read(make([]byte, 1))
	if err := s.Stop(context.Background()); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}
