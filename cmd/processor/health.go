package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/modules"
)

func newHealthCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Report whether the instance on this machine is ready",
		Long: `Asks /readyz on METRICS_PORT and exits 0 when the instance is ready, 1 when it is
not or does not answer. This is the health check of the container image, which
has no shell and no other HTTP client.`,
		Example: `  processor health
  processor health --json
  METRICS_PORT=9191 processor health --timeout 1s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadConsole(os.Environ())
			if err != nil {
				return err
			}
			if cfg.Port == 0 {
				return exit(exitConfig, fmt.Errorf("METRICS_PORT=0 takes any free port; set the one the instance took"))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r, err := askReadiness(ctx, "http://"+localAddress(cfg)+"/readyz")
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			err = out.Result(r, func() error {
				if r.Ready {
					return out.Line("%s", out.Paint(cli.Green, "ready"))
				}
				if err := out.Line("%s: %s", out.Paint(cli.Red, "not ready"), strings.Join(r.NotReady, ", ")); err != nil {
					return err
				}
				for _, name := range r.NotReady {
					if err := out.Line("  %s: %s", name, r.Checks[name]); err != nil {
						return err
					}
				}
				return nil
			})
			if err == nil && !r.Ready {
				return exit(exitFinding, nil)
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 4*time.Second, "maximum wait for the answer")
	return cmd
}

// localAddress is how this machine reaches the endpoint: one that listens on
// all interfaces is asked on loopback.
func localAddress(cfg config.Console) string {
	host := cfg.Host
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(cfg.Port))
}

func askReadiness(ctx context.Context, url string) (httpserver.Readiness, error) {
	var r httpserver.Readiness
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, fmt.Errorf("ask %s: %w", url, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: it is this machine
	res, err := client.Do(req)
	if err != nil {
		return r, fmt.Errorf("no answer at %s: %s; does it run, is METRICS_PORT the same?", req.URL.Host, modules.Causes(err))
	}
	defer res.Body.Close() //nolint:errcheck // read to its end below
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
		return r, fmt.Errorf("ask %s: %s; is this port another program's?", url, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&r); err != nil {
		return r, fmt.Errorf("ask %s: the answer is not ours; is this port another program's? %w", url, err)
	}
	return r, nil
}
