// Package redisserver runs a Redis of one's own.
package redisserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is a Redis without persistence: nothing in it outlives its process, so it never waits for a disk.
type Server struct {
	Address string
	Version string

	dir string
	cmd *exec.Cmd
}

// Start starts a server on a free port and returns when it answers.
func Start(ctx context.Context) (*Server, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("there is no redis-server: install Debian's package of that name, or name a server (-redis)")
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Server{Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	if s.dir, err = os.MkdirTemp("", "redis"); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(program, //nolint:gosec // what the machine calls redis-server
		"--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--dir", s.dir, "--save", "", "--appendonly", "no")
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start redis-server: %w", err), os.RemoveAll(s.dir))
	}
	if s.Version, err = Version(ctx, s.Address); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Stop ends the server.
func (s *Server) Stop() error {
	err := s.cmd.Process.Kill() // there is nothing to save
	_ = s.cmd.Wait()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Version waits until a server answers, and returns what it says that it is.
func Version(ctx context.Context, address string) (string, error) {
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	for end := time.Now().Add(10 * time.Second); ; {
		info, err := client.Info(ctx, "server").Result()
		if err == nil {
			_, rest, _ := strings.Cut(info, "redis_version:")
			version, _, _ := strings.Cut(rest, "\r\n")
			return version, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no answer from Redis at %s: %w", address, err)
		}
		time.Sleep(20 * time.Millisecond) // a server that starts says nothing
	}
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // only to find a free port
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer listener.Close()
	addr, ok := listener.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("find a free port: not TCP")
	}
	return addr.Port, nil
}
