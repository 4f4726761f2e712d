// Package console shows the fleet at work in a browser, and acts on it. Every
// instance serves it under /console/ and answers for the whole fleet. It needs no
// other service, no network and no build step: pages are html/template, the few
// scripts and the style are embedded as they are.
//
// Promises:
//
//  1. Closed it costs nothing: connections are opened when a page is asked for and
//     closed a while after the last one; no goroutine runs.
//  2. Open it is bounded: what several clients watch is read and rendered once,
//     there are at most maxClients streams, each with at most one pending update.
//     A client that does not read is dropped. What anybody may choose, a filter, a
//     device or a page, is asked for one at a time (lanes), and no longer than it is
//     watched.
//  3. Each server is asked on its own. While one is away the page says so and
//     shows what the other knows, and the last of the silent one with its age.
//     What is unknown is shown as unknown, never as 0.
//  4. Whatever a device, a producer or another program wrote is shown as text.
//     The Content-Security-Policy allows no other host and nothing inline.
//  5. It changes nothing with CONSOLE=read. With CONSOLE=write each action needs a
//     proven operator, a token of the page, a reason and a confirmation, and is a
//     function of internal/operator, which leaves a row in processor.audit.
package console
