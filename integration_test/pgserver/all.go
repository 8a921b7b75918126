package pgserver

import (
	"context"
	"errors"
	"os"
	"strings"
)

// StartAll starts the server that [Start] gives first, then one for every other major that can be had:
// the images in PGBATON_TEST_IMAGES ("postgres:14 postgres:18") and the directories in
// PGBATON_TEST_BINDIRS, or, without either, every major among [BinDirs]. A named one that does not start
// is an error; one merely found on the machine is left out with a line on stderr.
func StartAll(ctx context.Context) ([]*Server, error) {
	main, err := Start(ctx)
	if err != nil {
		return nil, err
	}
	servers := []*Server{main}
	for _, c := range candidates() {
		if c.major != 0 && has(servers, c.major) {
			continue
		}
		s, err := c.start(ctx)
		switch {
		case err != nil && c.named:
			return nil, errors.Join(err, stopAll(ctx, servers))
		case err != nil:
			note("%s: %s", c.name, brief(err))
		case has(servers, s.Major()): // an image's tag need not tell its major
			if err := s.Stop(ctx); err != nil {
				return nil, errors.Join(err, stopAll(ctx, servers))
			}
		default:
			servers = append(servers, s)
		}
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

func candidates() []candidate {
	var list []candidate
	for _, image := range splitList(os.Getenv("PGBATON_TEST_IMAGES"), " \t\n,") {
		list = append(list, candidate{
			name: image, major: tagMajor(image), named: true,
			start: func(ctx context.Context) (*Server, error) {
				if err := ensureImage(ctx, image); err != nil {
					return nil, err
				}
				return startContainer(ctx, image, fast(nil)...)
			},
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
	for _, s := range servers {
		if s.Major() == major {
			return true
		}
	}
	return false
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
