package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
)

const (
	defaultImage = "postgres:17-alpine"
	envImage     = "PGBATON_POSTGRES_IMAGE"

	// A broken engine often accepts connections and never answers.
	dockerHealthTimeout = 4 * time.Second
	dockerPullTimeout   = 5 * time.Minute
	// Without a registry testcontainers-go would try for a quarter of an hour to pull its own helper image.
	dockerStartTimeout = 90 * time.Second
)

func dockerOrigin(image string) string { return "Docker image " + image }

// findImage reports which image a container can be started from now. An error means that there is no
// healthy engine, or that it has no postgres image and cannot pull one.
func findImage(ctx context.Context) (string, error) {
	engine, err := connectDocker(ctx)
	if err != nil {
		return "", err
	}
	defer engine.Close()
	wanted := os.Getenv(envImage)
	if wanted == "" {
		wanted = defaultImage
	}
	pullErr := pullIfMissing(ctx, engine, wanted)
	if pullErr == nil {
		return wanted, nil
	}
	local, err := localImage(ctx, engine, tagMajor(wanted))
	if err != nil {
		return "", fmt.Errorf("%w; %w", pullErr, err)
	}
	note("%s; using the local image %s", brief(pullErr), local)
	return local, nil
}

// StartImage starts a server of a Docker image, which it pulls if the engine does not have it.
func StartImage(ctx context.Context, image string) (*Server, error) {
	if err := ensureImage(ctx, image); err != nil {
		return nil, err
	}
	return startContainer(ctx, image, fast(nil)...)
}

// ensureImage makes sure that the engine has this very image.
func ensureImage(ctx context.Context, image string) error {
	engine, err := connectDocker(ctx)
	if err != nil {
		return err
	}
	defer engine.Close()
	return pullIfMissing(ctx, engine, image)
}

// silence keeps testcontainers-go from reporting every step on stderr. Its logger is a plain variable, and servers are started
// side by side.
var silence = sync.OnceFunc(func() { log.SetDefault(log.NewNoopLogger()) })

// connectDocker finds the engine the way testcontainers-go does and asks whether it is well. The search
// itself can hang on a bad engine and takes no context, so it runs aside and is left behind if need be.
func connectDocker(ctx context.Context) (*testcontainers.DockerProvider, error) {
	silence()
	ctx, cancel := context.WithTimeout(ctx, dockerHealthTimeout)
	defer cancel()
	type answer struct {
		engine *testcontainers.DockerProvider
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		engine, err := testcontainers.NewDockerProvider()
		if err == nil {
			_, err = engine.Client().Ping(ctx, client.PingOptions{})
		}
		answers <- answer{engine, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			return nil, fmt.Errorf("pgserver: no healthy Docker: %w", a.err)
		}
		return a.engine, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("pgserver: Docker did not answer: %w", context.Cause(ctx))
	}
}

// pullIfMissing pulls with one try. testcontainers-go's own pull repeats for a quarter of an hour when
// the registry cannot be reached, which is long for somebody who has PostgreSQL on the machine.
func pullIfMissing(ctx context.Context, engine *testcontainers.DockerProvider, image string) error {
	if _, err := engine.Client().ImageInspect(ctx, image); err == nil {
		return nil
	}
	note("pulling the Docker image %s", image)
	ctx, cancel := context.WithTimeout(ctx, dockerPullTimeout)
	defer cancel()
	response, err := engine.Client().ImagePull(ctx, image, client.ImagePullOptions{})
	if err == nil {
		err = response.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("pgserver: pull %s: %w", image, err)
	}
	return nil
}

// localImage is an official image that the engine has: of the major wanted, or else the newest.
func localImage(ctx context.Context, engine *testcontainers.DockerProvider, major int) (string, error) {
	images, err := engine.ListImages(ctx)
	if err != nil {
		return "", fmt.Errorf("list local images: %w", err)
	}
	newest := ""
	for _, image := range images {
		switch tagged := tagMajor(image.Name); {
		case tagged == major && tagged >= minMajor:
			return image.Name, nil
		case tagged >= minMajor && tagged > tagMajor(newest):
			newest = image.Name
		}
	}
	if newest == "" {
		return "", errors.New("no local postgres image")
	}
	return newest, nil
}

// tagMajor reads the major from a tag of the official image: 17 from postgres:17.2-alpine. It is 0 for
// any other image, and for tags without a number.
func tagMajor(image string) int {
	tag, found := strings.CutPrefix(image, "postgres:")
	if !found {
		return 0
	}
	digits := strings.IndexFunc(tag, func(r rune) bool { return r < '0' || r > '9' })
	if digits >= 0 {
		tag = tag[:digits]
	}
	major, err := strconv.Atoi(tag)
	if err != nil {
		return 0
	}
	return major
}

// startContainer starts a container of an image that the engine has.
func startContainer(ctx context.Context, image string, opts ...Option) (*Server, error) {
	command := []string{"postgres"}
	for _, s := range newOptions(opts).settings {
		command = append(command, "-c", s.name+"="+s.value)
	}
	startCtx, cancel := context.WithTimeout(ctx, dockerStartTimeout)
	defer cancel()
	container, err := postgres.Run(startCtx, image,
		testcontainers.WithLogger(log.NewNoopLogger()),
		testcontainers.WithCmd(command...),
		postgres.BasicWaitStrategies(),
		testcontainers.WithEnv(map[string]string{"POSTGRES_HOST_AUTH_METHOD": authMethod}),
		inMemory(),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pgserver: start %s: %w", image, err), removeContainer(ctx, container))
	}
	stop, err := guardContainer(container)
	if err != nil {
		return nil, errors.Join(err, removeContainer(ctx, container))
	}
	url, err := container.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pgserver: ask for the address of %s: %w", image, err), stop(ctx))
	}
	major, err := askMajor(ctx, url)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pgserver: connect to %s: %w", image, err), stop(ctx))
	}
	s := &Server{url: url, origin: dockerOrigin(image), major: major, stop: stop}
	if err := s.hastenLogin(ctx); err != nil {
		return nil, errors.Join(err, stop(ctx))
	}
	return s, nil
}

// inMemory keeps a server's files where [tempDir] would: its image's own place for them differs between majors.
func inMemory() testcontainers.CustomizeRequestOption {
	if tempDir() != memoryDir {
		return func(*testcontainers.GenericContainerRequest) error { return nil }
	}
	const dir = "/var/lib/pgserver"
	return func(request *testcontainers.GenericContainerRequest) error {
		return errors.Join(
			testcontainers.WithTmpfs(map[string]string{dir: "rw"})(request),
			testcontainers.WithEnv(map[string]string{"PGDATA": dir + "/data"})(request))
	}
}

// guardContainer sets a watchdog on the container, where Docker's command is there to do its work, and
// gives the function that removes both.
func guardContainer(container *postgres.PostgresContainer) (stop func(context.Context) error, err error) {
	if _, err = exec.LookPath("docker"); err != nil {
		return func(ctx context.Context) error { return removeContainer(ctx, container) }, nil
	}
	guard, err := startWatchdog(containerScript, container.GetContainerID(), nil)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return errors.Join(removeContainer(ctx, container), guard.release(ctx))
	}, nil
}

func removeContainer(ctx context.Context, container *postgres.PostgresContainer) error {
	if container == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	// Its data is thrown away, so there is nothing to wait for.
	if err := container.Terminate(ctx, testcontainers.StopTimeout(0)); err != nil {
		return fmt.Errorf("pgserver: remove the container: %w", err)
	}
	return nil
}
