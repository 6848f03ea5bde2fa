// Threads that share one step: a barrier, torch's own OpenMP threads where they are known, or else a team of our own.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <pthread.h>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// Threads meet here; they spin, as the next to come is due within microseconds.
class Barrier {
  public:
    void wait(int count) {
        const int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
            if (spins > kSpins) std::this_thread::yield();
            pause();
        }
    }

  private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> phase_{0};
};

// The OpenMP runtime that the caller has already loaded, given by `use_openmp`: its threads spin for milliseconds after
// other work, and would keep threads of our own from running.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
    int (*thread)();                                               // omp_get_thread_num
    int (*threads)();                                              // omp_get_num_threads
} openmp;

// Without OpenMP, threads that wait for the next step: awake at first, as it follows soon while an image is drawn, then asleep.
class Team {
  public:
    std::mutex busy;  // held by the caller of `run`

    void run(int threads, const std::function<void(int)>& work) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (members_ < threads - 1) std::thread(&Team::serve, this, ++members_, round_.load()).detach();
            work_ = &work, active_ = threads, left_.store(threads - 1, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        work(0);
        for (int spins = 0; left_.load(std::memory_order_acquire); spins++) {
            if (spins > kSpins) std::this_thread::yield();
            pause();
        }
    }

  private:
    void serve(int id, int64_t seen) {
        for (;; seen++) {
            for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; spins++) pause();
            const std::function<void(int)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_.load() != seen; });
                seen = round_.load() - 1;
                work = id < active_ ? work_ : nullptr;
            }
            if (!work) continue;
            (*work)(id);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int)>* work_ = nullptr;
    int members_ = 0, active_ = 0;
    std::atomic<int64_t> round_{0};
    std::atomic<int> left_{0};
};

Team* team = new Team;  // never destroyed, as its threads are not joined; a forked process has none and begins anew

const int forked = pthread_atfork(nullptr, nullptr, [] { team = new Team; });

// work(id, threads) in every thread; alone where somebody else decodes at the same time.
void together(int threads, const std::function<void(int, int)>& work) {
    if (threads == 1) return work(0, 1);
    if (openmp.parallel) {
        const auto call = [](void* work) {
            (*(const std::function<void(int, int)>*)work)(openmp.thread(), openmp.threads());
        };
        return openmp.parallel(call, (void*)&work, threads, 0);
    }
    std::unique_lock<std::mutex> lock(team->busy, std::try_to_lock);
    if (!lock.owns_lock()) return work(0, 1);
    team->run(threads, [&](int id) { work(id, threads); });
}

}  // namespace

extern "C" void use_openmp(void* parallel, void* thread, void* threads) {
    openmp = {(decltype(OpenMP::parallel))parallel, (int (*)())thread, (int (*)())threads};
}
