package pgserver

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
)

// StartAll starts a server for every major that can be had and that main, which runs already, is not of:
// the images in PGBATON_TEST_IMAGES ("postgres:14 postgres:18") and the directories in
// PGBATON_TEST_BINDIRS, or, without either, every major among [BinDirs]. With outer it starts only what the oldest
// and the newest major need. It returns the servers in the order of their majors, main among them if it is one of those
// asked for. A named one that does not start is an error; one merely found on the machine is left out with a line on stderr.
func StartAll(ctx context.Context, main *Server, outer bool) ([]*Server, error) {
	var (
		mu      sync.Mutex
		servers = []*Server{main}
		errs    []error
		group   sync.WaitGroup
	)
	for _, c := range chosen(candidates(), main.Major(), outer) {
		group.Go(func() {
			s, err := c.start(ctx)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil && c.named:
				errs = append(errs, err)
			case err != nil:
				note("%s: %s", c.name, brief(err))
			case has(servers, s.Major()): // an image's tag need not tell its major
				errs = append(errs, s.Stop(ctx))
			default:
				servers = append(servers, s)
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, stopAll(ctx, servers[1:]))
	}
	slices.SortFunc(servers, func(a, b *Server) int { return a.Major() - b.Major() })
	if outer && len(servers) > 2 {
		servers = []*Server{servers[0], servers[len(servers)-1]}
	}
	return servers, nil
}

// candidate is a server that StartAll may start.
type candidate struct {
	name  string
	major int  // 0 when not known before it runs
	named bool // by the environment, so its failure is an error
	start func(context.Context) (*Server, error)
}

// chosen returns the first candidate of each major but that of the server that runs already. Of outer ones it returns
// those that are older or newer than all others, and those of which nobody knows.
func chosen(list []candidate, running int, outer bool) []candidate {
	oldest, newest := running, running
	for _, c := range list {
		if c.major != 0 {
			oldest, newest = min(oldest, c.major), max(newest, c.major)
		}
	}
	seen := map[int]bool{running: true}
	var some []candidate
	for _, c := range list {
		if c.major != 0 && (seen[c.major] || outer && c.major != oldest && c.major != newest) {
			continue
		}
		seen[c.major] = true
		some = append(some, c)
	}
	return some
}

func candidates() []candidate {
	var list []candidate
	for _, image := range splitList(os.Getenv("PGBATON_TEST_IMAGES"), " \t\n,") {
		list = append(list, candidate{
			name: image, major: tagMajor(image), named: true,
			start: func(ctx context.Context) (*Server, error) { return StartImage(ctx, image) },
		})
	}
	dirs := splitList(os.Getenv(envTestBinDirs), binDirSeparators)
	named := len(list)+len(dirs) > 0
	if !named {
		dirs = BinDirs()
	}
	for _, dir := range dirs {
		list = append(list, candidate{
			name: dir, major: binaryMajor(dir), named: named,
			start: func(ctx context.Context) (*Server, error) { return StartBinaries(ctx, dir, fast(nil)...) },
		})
	}
	return list
}

func has(servers []*Server, major int) bool {
	return slices.ContainsFunc(servers, func(s *Server) bool { return s.Major() == major })
}

func stopAll(ctx context.Context, servers []*Server) error {
	var errs []error
	for _, s := range servers {
		errs = append(errs, s.Stop(ctx))
	}
	return errors.Join(errs...)
}

func splitList(list, separators string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(separators, r) })
}
