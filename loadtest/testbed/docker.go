package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// errNoDocker is returned where there is no Docker engine to run containers.
var errNoDocker = errors.New("there is no Docker engine here")

const (
	// dockerLabel is on all that a run makes, with the number of its process, so that
	// the next one can remove what was left behind.
	dockerLabel = "processor.loadtest"
	imageScript = "scripts/image.sh"
	// servicePort is where an instance listens inside its container.
	servicePort = 9464
)

// Docker runs instances as containers on a private network from which only the
// servers can be reached, at the address that this machine has there.
type Docker struct {
	image   string
	ours    bool // the image was built for this run
	network string
	prefix  string // of the addresses, such as 10.213.7
	next    int    // last part of the last address given
}

// OpenDocker builds the image unless it is named, and makes the network.
func OpenDocker(ctx context.Context, image string) (_ *Docker, err error) {
	if _, err := dockerCommand(ctx, "version", "--format", "{{.Server.Version}}"); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoDocker, err)
	}
	removeLeftovers(ctx)
	d := &Docker{image: image, next: 9}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}()
	if image == "" {
		d.image, d.ours = fmt.Sprintf("processor-loadtest:%d", os.Getpid()), true
		if out, err := exec.CommandContext(ctx, imageScript, d.image).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the image with %s (run this in the source folder, or name an image with --image): %w: %s",
				imageScript, err, bytes.TrimSpace(out))
		}
	}
	const tries = 20
	for range tries { // another network may have the addresses
		d.prefix = fmt.Sprintf("10.%d.%d", 200+rand.N(50), rand.N(250))
		d.network = "processor-loadtest-" + strconv.Itoa(os.Getpid())
		_, err = dockerCommand(ctx, "network", "create", "--internal", "--subnet", d.prefix+".0/24", "--gateway", d.gateway(),
			"--label", ownLabel(), d.network)
		if err == nil || !strings.Contains(err.Error(), "overlap") {
			break
		}
	}
	return d, err
}

// gateway is this machine's address on the network.
func (d *Docker) gateway() string { return d.prefix + ".1" }

// command returns the command line of an instance, and where it will listen.
func (d *Docker) command(name string, environ []string) (argv []string, address string) {
	d.next++
	ip := fmt.Sprintf("%s.%d", d.prefix, d.next)
	argv = []string{
		"docker", "run", "--name", d.container(name), "--label", ownLabel(), "--network", d.network, "--ip", ip,
		"--read-only", "--user", "65532", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
		"--memory", "256m", "--memory-swap", "256m", "--pids-limit", "200", "--no-healthcheck",
	}
	for _, e := range environ {
		argv = append(argv, "-e", e)
	}
	return append(argv, d.image, "run"), net.JoinHostPort(ip, strconv.Itoa(servicePort))
}

func (d *Docker) container(name string) string { return d.network + "-" + name }

// signal does to a container what a signal does to a process; SIGTERM is docker stop.
func (d *Docker) signal(name string, s syscall.Signal) error {
	c := d.container(name)
	args := map[syscall.Signal][]string{
		syscall.SIGKILL: {"kill", c},
		syscall.SIGSTOP: {"pause", c},
		syscall.SIGCONT: {"unpause", c},
	}[s]
	if s == syscall.SIGTERM { // returns when it has ended, so it is not waited for
		stop := exec.Command("docker", "stop", "--time", "60", c)
		if err := stop.Start(); err != nil {
			return fmt.Errorf("docker stop: %w", err)
		}
		go func() { _ = stop.Wait() }() // the instance's exit code says what came of it
		return nil
	}
	_, err := dockerCommand(context.Background(), args...) //nolint:forbidigo // as short as a signal
	if err != nil && strings.Contains(err.Error(), "is not running") {
		return os.ErrProcessDone // it ended by itself in the same moment
	}
	return err
}

// Cut takes a container off the network, or puts it back at its address.
func (d *Docker) Cut(ctx context.Context, in *Instance, off bool) error {
	c := d.container(in.Name)
	if off {
		_, err := dockerCommand(ctx, "network", "disconnect", d.network, c)
		return err
	}
	ip, _, err := net.SplitHostPort(in.address)
	if err != nil {
		return fmt.Errorf("address of %s: %w", in.Name, err)
	}
	_, err = dockerCommand(ctx, "network", "connect", "--ip", ip, d.network, c)
	return err
}

// Limit takes memory away from a container, down to bytes.
func (d *Docker) Limit(ctx context.Context, name string, bytes int) error {
	_, err := dockerCommand(ctx, "update", "--memory", strconv.Itoa(bytes), "--memory-swap", strconv.Itoa(bytes), d.container(name))
	return err
}

// Killed reports whether the kernel ended a container, which nobody else sent a SIGKILL.
// That it was for its memory is not asked for: the engine misses it when the end of the
// process reaches it first.
func (d *Docker) Killed(ctx context.Context, name string) (bool, error) {
	out, err := dockerCommand(ctx, "inspect", "--format", "{{.State.ExitCode}}", d.container(name))
	return out == strconv.Itoa(128+int(syscall.SIGKILL)), err
}

func (d *Docker) remove(name string) error {
	_, err := dockerCommand(context.Background(), "rm", "-f", "-v", d.container(name)) //nolint:forbidigo // must happen
	return err
}

// Close removes network and image. The containers are gone by then.
func (d *Docker) Close(ctx context.Context) error {
	var errs []error
	if d.network != "" {
		_, err := dockerCommand(ctx, "network", "rm", d.network)
		errs = append(errs, err)
	}
	if d.ours {
		_, err := dockerCommand(ctx, "image", "rm", "-f", d.image)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func ownLabel() string { return dockerLabel + "=" + strconv.Itoa(os.Getpid()) }

// removeLeftovers removes what runs have left behind whose process is gone.
func removeLeftovers(ctx context.Context) {
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"ps", "-a", "--format", `{{.ID}} {{.Label "` + dockerLabel + `"}}`}, []string{"rm", "-f", "-v"}},
		{[]string{"network", "ls", "--format", `{{.ID}} {{.Label "` + dockerLabel + `"}}`}, []string{"network", "rm"}},
		{[]string{"image", "ls", "--format", "{{.Repository}}:{{.Tag}} {{.Tag}}", "processor-loadtest"}, []string{"image", "rm", "-f"}},
	} {
		out, err := dockerCommand(ctx, append(kind.list, "--filter", "label="+dockerLabel)...)
		if kind.list[0] == "image" {
			out, err = dockerCommand(ctx, kind.list...)
		}
		if err != nil {
			continue // there is nothing to do about it
		}
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if len(fields) != 2 {
				continue
			}
			pid, err := strconv.Atoi(fields[1])
			if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
				_, _ = dockerCommand(ctx, append(kind.remove, fields[0])...)
			}
		}
	}
}

// dockerCommand runs docker and returns what it printed.
func dockerCommand(ctx context.Context, args ...string) (string, error) {
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return string(bytes.TrimSpace(out)), nil
}
